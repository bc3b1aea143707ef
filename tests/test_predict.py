"""`predict` from its command line to its files, with networks that take no time: bright spots are its cells."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from quick_predict import spots

from kernel.__main__ import main
from kernel.commands.written import WRITTEN_NAME
from kernel.export.folder import Outcome, Wanted, predict_images, remove_other_files
from kernel.export.inputs import InputImage
from kernel.export.progress import readable_seconds, shown_progress
from kernel.runtime.failures import FailedImage

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"
MEMBERS = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]


class Run:
    """Runs of the command in a folder, and what the networks were shown."""

    def __init__(self, home: Path):
        self.home, self.zooms = home, list[tuple[float, float]]()

    def __call__(self, *words: str, code: int = 0) -> None:
        assert main(["predict", *words, "--out", str(self.home / "out"), *MEMBERS]) == code

    def rows(self, table: str = "images.csv") -> list[dict[str, str]]:
        with (self.home / "out" / table).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    given = Run(tmp_path)

    def segment(ensemble: Any, image: np.ndarray, zoom: tuple[float, float]) -> SimpleNamespace:
        given.zooms.append(zoom)
        return SimpleNamespace(masks=spots(image))

    monkeypatch.setattr("kernel.scale.ScaledEnsemble.segment", segment)
    monkeypatch.setattr("kernel.scale.ScaledEnsemble.plan", lambda ensemble, shape: None)
    monkeypatch.setattr("kernel.scoring.predicting.EnsembleFiles.load", lambda files, device: None)
    monkeypatch.setattr("kernel.commands.predict.use_vendored_packages", lambda: None)
    monkeypatch.chdir(tmp_path)
    return given


def picture(*places: tuple[int, int], side: int = 4, shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """(H, W) uint8 with a bright square at each place."""
    image = np.full(shape, 100, np.uint8)
    for y, x in places:
        image[y : y + side, x : x + side] = 255
    return image


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def test_an_image_is_asked_for_when_its_turn_comes(tmp_path: Path) -> None:
    """What asks is a journal, which reads the whole file."""
    images = [InputImage(tmp_path / name, name, name) for name in "abc"]
    told: list[str] = []

    def outcomes(waiting: Iterator[InputImage]) -> Iterator[tuple[InputImage, Outcome]]:
        for image in waiting:
            told.append(f"done {image.name}")
            yield image, FailedImage("no networks", wrong_input=False)

    with shown_progress(len(images)) as progress:
        result = predict_images(
            outcomes, images, tmp_path, Wanted(()), progress, lambda image: told.append(f"asked {image.name}")
        )
    assert told == ["asked a", "done a", "asked b", "done b", "asked c", "done c"]
    assert set(result.failed) == set("abc") and not result.records


def test_folders_are_mirrored_and_equal_names_told_apart(run: Run) -> None:
    for number, name in enumerate(("a.png", "a.tif", "p1/a.png", "p2/a.png")):
        write(run.home / "in" / name, picture(*[(10 * (each + 1), 20) for each in range(number + 1)]))
    run("in", "--recursive", "--export", "labels,geojson,pictures,tables,coco,submission")
    expected = {"a.png": 1, "a.tif": 2, "p1/a": 3, "p2/a": 4}
    assert {row["image"]: int(row["cells"]) for row in run.rows()} == expected
    assert [row["file"] for row in run.rows()] == ["a.png", "a.tif", "p1/a.png", "p2/a.png"]
    for name, count in expected.items():
        assert cv2.imread(str(run.home / "out" / "labels" / f"{name}.tif"), cv2.IMREAD_UNCHANGED).max() == count
        assert (run.home / "out" / "outlines" / f"{name}.geojson").is_file()
        assert sum(row["image"] == name for row in run.rows("cells.csv")) == count
        assert sum(row["id"] == name for row in run.rows("submission.csv")) == count


def test_an_output_among_the_images_is_never_an_input(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write(run.home / "a.png", picture((5, 5)))
    for _ in range(2):
        run(".", "--recursive")
        assert [row["image"] for row in run.rows()] == ["a"]
    (run.home / "out").rename(run.home / "earlier")
    run(".", "--recursive")
    assert [row["image"] for row in run.rows()] == ["a"]
    assert "1 folder of results (earlier/)" in capsys.readouterr().err
    run("out/pictures/a.png", code=2)
    assert "error: images out/pictures/a.png is read, and would be lost" in capsys.readouterr().err


def test_a_zoom_from_what_the_file_tells(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.home / "in").mkdir()
    image = picture((5, 5))
    told = {"axes": "YX", "PhysicalSizeX": 0.62, "PhysicalSizeY": 0.62}
    tifffile.imwrite(run.home / "in" / "known.ome.tif", image, ome=True, metadata=told)
    tifffile.imwrite(run.home / "in" / "printed.tif", image, resolution=(300, 300), resolutionunit="INCH")
    write(run.home / "in" / "unknown.png", image)
    run("in", "--export", "ome-tiff,tables")
    assert run.zooms == [(0.5, 0.5), (1, 1), (1, 1)]
    assert "known.ome: zoom 0.5, of pixels of 0.62 um" in (told_of := capsys.readouterr().err)
    assert "as no microscope's are" in told_of
    known, printed, _ = run.rows()
    assert (known["pixel_um"], known["zoom"]) == ("0.62", "0.5") and (printed["pixel_um"], printed["zoom"]) == ("", "1")
    assert float(known["density_per_mm2"]) == pytest.approx(1 / (60 * 80 * 0.62e-3**2), rel=1e-3)
    cells = {row["image"]: row for row in run.rows("cells.csv")}
    assert float(cells["known.ome"]["area_um2"]) == pytest.approx(16 * 0.62**2, abs=0.01)
    for name in ("perimeter", "equivalent_diameter", "major_axis", "minor_axis"):
        in_pixels = float(cells["known.ome"][f"{name}_px"])
        assert float(cells["known.ome"][f"{name}_um"]) == pytest.approx(in_pixels * 0.62, abs=0.01)
        assert cells["unknown"][f"{name}_um"] == ""
    with tifffile.TiffFile(run.home / "out" / "ome-tiff" / "known.ome.ome.tif") as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert pixels["PhysicalSizeX"] == 0.62 and file.asarray().shape == image.shape


def test_a_pixel_size_and_a_zoom_that_are_given(run: Run) -> None:
    write(run.home / "a.png", picture((5, 5)))
    run("a.png", "--pixel-size", "2.48")
    run("a.png", "--pixel-size", "2.48", "--zoom", "0.25")
    assert run.zooms == [(2, 2), (0.25, 0.25)]
    assert [(row["pixel_um"], row["zoom"]) for row in run.rows()] == [("2.48", "0.25")]


def test_pixels_that_are_not_square(run: Run) -> None:
    told = {"axes": "YX", "PhysicalSizeX": 0.62, "PhysicalSizeY": 1.24}
    tifffile.imwrite(run.home / "a.ome.tif", picture((5, 5)), ome=True, metadata=told)
    run("a.ome.tif", "--export", "tables")
    assert run.zooms == [(1, 0.5)]
    (cell,) = run.rows("cells.csv")
    assert cell["perimeter_um"] == "" and float(cell["area_um2"]) == pytest.approx(16 * 0.62 * 1.24, abs=0.01)
    assert float(cell["major_axis_um"]) == pytest.approx(2 * float(cell["minor_axis_um"]), rel=0.01)


def test_cells_of_an_unlikely_size_are_told_in_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    places = [(5 + 20 * row, 5 + 15 * column) for row in range(3) for column in range(4)]
    for number in range(3):
        write(run.home / "in" / f"{number}.png", picture(*places, side=4))
    run("in")
    told = capsys.readouterr().err
    assert told.count("--pixel-size in micrometres, or --zoom 3.5") == 1 and "3 of 3 image(s)" in told
    run("in", "--zoom", "1")
    assert "--pixel-size" not in capsys.readouterr().err
    for number in range(3):
        write(run.home / "in" / f"{number}.png", picture(*places, side=13))
    run("in")
    assert "--pixel-size" not in capsys.readouterr().err


def test_planes_of_a_stack(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Frame t, channel c, depth z has t + 1 cells of height c + 2, more to the right the deeper."""
    values = np.array(
        [
            [
                [picture(*[(10 * (n + 1), 10 + 10 * z) for n in range(t + 1)], side=c + 2) for z in range(3)]
                for c in range(2)
            ]
            for t in range(2)
        ]
    )
    tifffile.imwrite(run.home / "movie.tif", values.transpose(0, 2, 1, 3, 4), imagej=True, metadata={"axes": "TZCYX"})
    run("movie.tif")
    told = capsys.readouterr().err
    assert told.count("frame 0 of 2, z 1 of 3, channel 0 of 2 are taken") == 1
    (cell,) = run.rows("cells.csv")
    assert (cell["image"], cell["area_px"], cell["x1"]) == ("movie", "4", "20")
    run("movie.tif", "--frame", "all", "--channel", "1", "--z", "max", "--replace")
    assert [(row["image"], row["frame"], row["cells"]) for row in run.rows()] == [
        ("movie_t0", "0", "3"), ("movie_t1", "1", "6"),
    ]  # fmt: skip
    assert {row["area_px"] for row in run.rows("cells.csv")} == {"9"}
    assert sorted(path.name for path in (run.home / "out" / "labels").iterdir()) == ["movie_t0.tif", "movie_t1.tif"]
    write(run.home / "gray.png", picture((5, 5)))
    run("movie.tif", "gray.png", "--channel", "1", "--replace", code=2)  # the gray one has no second channel
    assert "no channel 1: it has one" in capsys.readouterr().err
    assert [(row["image"], bool(row["failure"])) for row in run.rows()] == [("movie", False), ("gray", True)]


def cellpose_saves_to(path: Path) -> tuple[Path, Path | None]:
    """Where Cellpose's window saves what was corrected in a `_seg.npy`, and the image that it shows; None: the file's.

    By `_load_seg` and `_save_sets` of its gui/io.py.
    """
    named = Path(np.load(path, allow_pickle=True).item()["filename"])
    shown = next((each for each in (named, path.parent / named.name) if each.is_file()), None)
    base = str(shown) if shown else str(path)[: -len("_seg.npy")]
    return Path(os.path.splitext(base)[0] + "_seg.npy"), shown  # noqa: PTH122


def test_corrections_of_a_frame_overwrite_no_other(run: Run) -> None:
    frames = np.stack([picture((5, 5 * number)) for number in range(3)])
    (run.home / "in").mkdir()
    tifffile.imwrite(run.home / "in" / "movie.tif", frames, imagej=True, metadata={"axes": "TYX"})
    tifffile.imwrite(run.home / "in" / "time.v2.ome.tif", frames, ome=True, metadata={"axes": "TYX"})
    tifffile.imwrite(run.home / "in" / "one.v2.ome.tif", frames[0], ome=True, metadata={"axes": "YX"})
    write(run.home / "in" / "still.v2.png", frames[0])
    write(run.home / "in" / "colour.png", np.repeat(frames[0][..., None], 3, axis=2))
    run("in", "--frame", "all", "--export", "seg-npy")
    folder = run.home / "out" / "seg-npy"
    for stem in ("movie", "time_v2_ome"):
        for number in range(3):
            path = folder / f"{stem}_t{number}_seg.npy"
            told = np.load(path, allow_pickle=True).item()
            assert cellpose_saves_to(path) == (path, None)
            assert os.path.splitext(told["filename"])[0] + "_seg.npy" == path.name  # noqa: PTH122
            np.testing.assert_array_equal(told["img"][..., 0], frames[number])
    for name in ("one.v2.ome.tif", "still.v2.png", "colour.png"):
        image = run.home / "in" / name
        path = folder / f"{image.stem}_seg.npy"
        assert cellpose_saves_to(path) == (image.with_name(path.name), image.resolve())
    run("in/movie.tif", "in/colour.png", "--channel", "0", "--export", "seg-npy", "--replace")
    for name in ("movie", "colour"):  # a frame, a sample
        path = folder / f"{name}_seg.npy"
        assert cellpose_saves_to(path) == (path, None)


def test_cells_that_are_left_out(run: Run) -> None:
    image = picture((0, 10), (30, 30), (56, 70))
    image[45:47, 45:47] = 255
    write(run.home / "a.png", image)
    for words, areas in (((), [16, 16, 4, 16]), (("--exclude-edges",), [16, 4]), (("--min-area", "5"), [16, 16, 16])):
        run("a.png", "--pixel-size", "1.24", *words)
        (row,) = run.rows()
        assert row["cells"] == str(len(areas)) and row["confluence"] == f"{52 / (60 * 80):.4f}"
        assert float(row["density_per_mm2"]) == pytest.approx(4 / (60 * 80 * 1.24e-3**2), rel=1e-3)
        cells = run.rows("cells.csv")
        assert [int(row["area_px"]) for row in cells] == areas
        assert [int(row["cell"]) for row in cells] == list(range(1, len(areas) + 1))
        labels = cv2.imread(str(run.home / "out" / "labels" / "a.tif"), cv2.IMREAD_UNCHANGED)
        assert [int((labels == number + 1).sum()) for number in range(labels.max())] == areas
    run("a.png", "--exclude-edges", "--min-area", "100")
    assert [row["cells"] for row in run.rows()] == ["0"] and run.rows("cells.csv") == []


def test_gray_levels_far_from_those_that_members_know(
    run: Run, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line tells of them, in a run that goes on as well; no word where all is well, or they are matched."""
    for name in "abcde":
        write(run.home / "in" / f"{name}.png", picture((5, 5)) // (1 if name == "c" else 4))
    stopped("in")
    assert "far from what" not in capsys.readouterr().err
    run("in", "-q")
    (told,) = capsys.readouterr().err.splitlines()
    assert "4 of 5 image(s) have gray levels far from what the members know" in told
    assert "a (mean 25, spread " in told and "d (mean" in told and ", ...; --match-gray brings them" in told
    assert "c (mean" not in told and "e (mean" not in told
    assert [row["cells"] for row in run.rows()] == ["0", "0", "1", "0", "0"]
    run("in", "--match-gray")
    told = capsys.readouterr().err
    assert "far from what" not in told and told.count("its gray levels are matched") == 1
    assert [row["cells"] for row in run.rows()] == ["1"] * 5
    assert run.rows("cells.csv")[0]["mean_intensity"] == "63.00"  # as the file has it: 255 // 4


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_intensities_compare_between_images_of_any_depth(run: Run, dtype: type) -> None:
    """What members see is stretched for each image by itself; tables have what the file has, of the plane taken."""
    (run.home / "in").mkdir()
    scene = picture((5, 5), (30, 30)).astype(dtype)
    frames = np.stack([scene, 2 * scene, 8 * scene])
    for number, values in enumerate(frames):
        tifffile.imwrite(run.home / "in" / f"{number}.tif", values)
    tifffile.imwrite(run.home / "in" / "movie.tif", frames, imagej=True, metadata={"axes": "TYX"})
    for words in ((), ("--match-gray",)):
        run("in", "--frame", "all", "--replace", *words)
        rows = run.rows("cells.csv")
        found = {row["image"]: (float(row["mean_intensity"]), float(row["intensity_deviation"])) for row in rows}
        assert len(rows) == 12
        assert found == {
            name: (255.0 * times, 0.0)
            for number, times in enumerate((1, 2, 8))
            for name in (str(number), f"movie_t{number}")
        }


def test_runs_without_matched_gray_levels_are_those_of_before() -> None:
    """What makes a run's journal another one is the same text as before there was the option."""
    assert repr(Wanted(("labels",), zoom=2.0)) == (
        "Wanted(exports=('labels',), choice=PlaneChoice(channel=None, z=None, frame=None), pixel_um=None, zoom=2.0, "
        "exclude_edges=False, min_area=0)"
    )


def test_how_much_is_told(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(run.home / "in" / f"{name}.png", picture((5, 5)))
    run("in")
    shown = capsys.readouterr()
    assert "1/2 a: 1 cells of shsy5y, " in shown.err and "2/2 b: 1 cells" in shown.err and " left" in shown.err
    assert shown.out == "2 images: labels, geojson, pictures, tables in " + str(run.home / "out") + "\n"
    run("in", "-q")
    assert capsys.readouterr() == ("", "")
    (run.home / "in" / "c.png").touch()
    run("in", "--quiet", code=2)
    assert "the file is empty" in (told := capsys.readouterr().err) and "1/3" not in told
    with pytest.raises(SystemExit):
        run("in", "-q", "-v")


def test_a_terminal_has_a_bar_and_no_colours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pty: Any = pytest.importorskip("pty", reason="a terminal is POSIX's")
    for number in range(3):
        write(run.home / "in" / f"{number}.png", picture((5, 5)))
    (run.home / "in" / "broken.png").touch()
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8", newline="") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("NO_COLOR", "1")
        run("in", code=2)
        terminal.flush()
        shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert "100%" in shown and "4/4" in shown and "2/4 0:" not in shown
    assert "the file is empty" in shown and "\x1b[3" not in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--z", "top"), "z 'top': give an index, counted from 0, or max or middle"),
        (("--frame", "-2"), "frame -2"),
        (("gone.png",), "no file or folder gone.png"),
        (("--pixel-size", "99"), "a.png: a zoom of 79.8 shows no cells"),
    ],
)
def test_options_that_mean_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    write(run.home / "a.png", picture((5, 5)))
    run("a.png", *words, code=2)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--zoom", "99"), "--zoom: '99' is not a number from 0.03125 up to 32"),
        (("--zoom", "nan"), "--zoom: 'nan' is not a number from 0.03125"),
        (("--zoom", "0"), "--zoom: '0' is not a number from 0.03125"),
        (("--pixel-size", "-1"), "--pixel-size: '-1' is not a number above 0"),
        (("--pixel-size", "0,65"), "'0,65' is not a number above 0: write it with a decimal point, as 0.65"),
        (("--min-area", "-1"), "--min-area: '-1' is not a whole number from 0 on"),
    ],
)
def test_numbers_that_mean_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("a.png", *words)
    assert told in capsys.readouterr().err


@pytest.fixture
def stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command until it has one image, as if it was stopped then."""

    def stop(*words: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("kernel.export.progress.Lines.done", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
            run(*words, code=130)

    return stop


def test_what_is_asked_for_decides_what_is_gone_on_with(
    run: Run, stopped: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was finished by other options is not thrown away untold."""
    for name in ("a", "b"):
        write(run.home / "in" / f"{name}.png", picture((5, 5)))
    for words in (
        ("--zoom", "2"),
        ("--min-area", "3"),
        ("--exclude-edges",),
        ("--pixel-size", "1"),
        ("--match-gray",),
        ("--z", "max"),
    ):
        stopped("in")
        capsys.readouterr()
        run("in", *words, code=2)
        told = capsys.readouterr().err
        assert f"{run.home / 'out'}: an earlier run was stopped, by other options or members, and has 1 images" in told
        assert "repeat its command, name another --out, or give --replace" in told
        run("in")
        assert "1 of 2 images are finished already" in capsys.readouterr().err
        stopped("in")
        capsys.readouterr()
        run("in", *words, "--replace")
        assert "are finished already" not in capsys.readouterr().err


def test_images_that_are_gone_leave_nothing(run: Run, stopped: Callable[..., None]) -> None:
    for name in ("a", "b"):
        write(run.home / "in" / "sub" / f"{name}.png", picture((5, 5)))
    stopped("in", "--recursive", "--export", "labels,ome-zarr")
    (run.home / "in" / "sub" / "a.png").unlink()
    run("in", "--recursive", "--export", "labels,ome-zarr")
    found = [path.relative_to(run.home / "out").as_posix() for path in (run.home / "out").glob("*/*/*")]
    assert sorted(found) == ["labels/sub/b.tif", "ome-zarr/sub/b.ome.zarr"]


def test_folders_that_are_called_as_what_is_written_keep_their_results(run: Run) -> None:
    """Those of the input, which the output mirrors."""
    for name in ("day1.tif", "x.png", "y.geojson", "z.ome.tif"):
        write(run.home / "in" / name / "sub" / "a.png", picture((5, 5)))
    run("in", "--recursive", "--export", "labels,geojson,pictures,ome-zarr")
    for kind, ending in (("labels", ".tif"), ("outlines", ".geojson"), ("pictures", ".png"), ("ome-zarr", ".ome.zarr")):
        for name in ("day1.tif", "x.png", "y.geojson", "z.ome.tif"):
            assert (run.home / "out" / kind / name / "sub" / f"a{ending}").exists(), (kind, name)


def test_accented_names_are_known_in_another_form(tmp_path: Path) -> None:
    """As macOS may list them: decomposed, where the image's name is composed."""
    for folder, name in (("labels", "cafe\u0301.tif"), ("labels", "the\u0301.tif")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(b"")
    remove_other_files(tmp_path, ["labels"], {"caf\u00e9": {}})
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["cafe\u0301.tif"]


def test_an_image_too_large_for_rois_is_told_before_its_networks(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kernel.export.rois.LARGEST_SIDE", 70)
    write(run.home / "in" / "small.png", picture((5, 5), shape=(60, 70)))
    write(run.home / "in" / "large.png", picture((5, 5)))
    run("in", "--export", "labels,rois", code=2)
    assert len(run.zooms) == 1 and "large" in capsys.readouterr().err
    (row,) = (row for row in run.rows() if row["image"] == "large")
    assert "large.png: the image of 60 x 80 pixels is larger than ImageJ's regions of interest reach" in row["failure"]
    run("in", "--export", "labels")
    assert (run.home / "out" / "labels" / "large.tif").is_file()


def test_a_kill_after_the_results_were_put_in_place_loses_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is a journal without its folder: the same command must not take its images for written."""
    write(run.home / "in" / "a.png", picture((5, 5)))

    def stop_at_the_end(folder: Path) -> None:
        if (run.home / "out").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kernel.commands.resuming.remove_folder", stop_at_the_end)
        run("in", code=130)
    assert (run.home / ".out.unfinished" / "journal.log").is_file()
    for _ in range(2):
        assert (run.home / "out" / "labels" / "a.tif").is_file() and [row["cells"] for row in run.rows()] == ["1"]
        run("in")


@pytest.mark.parametrize(
    "name", ["labels/a.tif", "labels/a_corrected.tif", "rois/sub/b.zip", "images.csv", WRITTEN_NAME, "labels/.DS_Store"]
)
def test_work_in_the_results_is_not_replaced_untold(run: Run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """As masks that are corrected where they lie; also where a file is put back with an older time."""
    write(run.home / "in" / "a.png", picture((5, 5)))
    write(run.home / "in" / "sub" / "b.png", picture((5, 5)))
    given = ["in", "--recursive", "--export", "labels,rois,tables"]
    for _ in range(2):
        run(*given)
    path = run.home / "out" / name
    path.write_bytes(b"mine")
    os.utime(path, (1e9, 1e9))
    capsys.readouterr()
    if name == "labels/.DS_Store":
        run(*given)
        return
    run(*given, code=2)
    told = capsys.readouterr().err
    first = "cells.csv, images.csv, labels/a.tif" if name == WRITTEN_NAME else name  # without the note, all of them
    assert f"that may have been changed or added since it was written ({first}" in told and "give --replace" in told
    assert path.read_bytes() == b"mine"
    run(*given, "--replace")
    assert not path.exists() or path.read_bytes() != b"mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_results_beside_failed_images_are_for_the_same_people_each_time(run: Run) -> None:
    write(run.home / "in" / "a.png", picture((5, 5)))
    (run.home / "in" / "empty.png").touch()
    for _ in range(2):  # the second time in a copy of the first one's
        run("in", code=2)
        folder = run.home / "out"
        assert {path.stat().st_mode for path in [folder, *folder.iterdir()] if path.is_dir()} == {
            (run.home / "in").stat().st_mode
        }


def test_images_that_failed_are_done_alone_by_the_same_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless somebody has changed the results, or other ones are asked for; then all are done anew."""
    for name in ("a", "b"):
        write(run.home / "in" / f"{name}.png", picture((5, 5)))

    def done_of(*words: str, code: int = 2) -> int:
        run.zooms.clear()
        run("in", *words, code=code)
        return len(run.zooms)

    (run.home / "in" / "bad.png").write_bytes(b"none")
    assert done_of() == 2
    assert "bad; once they are mended, the same command does these alone" in capsys.readouterr().err
    labels = (run.home / "out" / "labels" / "a.tif").read_bytes()
    assert done_of() == 0 and "2 of 3 images are finished already" in capsys.readouterr().err
    write(run.home / "in" / "b.png", picture((5, 5), (30, 5)))
    assert done_of() == 1
    (run.home / "out" / "labels" / "a.tif").write_bytes(b"mine")
    assert done_of("--replace") == 2 and (run.home / "out" / "labels" / "a.tif").read_bytes() == labels
    assert done_of("--zoom", "2") == 2
    assert done_of() == 2
    write(run.home / "in" / "bad.png", picture((5, 5), (30, 5), (50, 5)))
    assert done_of(code=0) == 1
    assert {row["image"]: row["cells"] for row in run.rows()} == {"a": "1", "b": "2", "bad": "3"}
    assert [row["image"] for row in run.rows("cells.csv")] == ["a", *["b"] * 2, *["bad"] * 3]
    assert sorted(path.name for path in (run.home / "out" / "labels").iterdir()) == ["a.tif", "b.tif", "bad.tif"]
    assert not (run.home / ".out.unfinished").exists()
    assert done_of(code=0) == 3


def test_results_of_images_that_fail_now_are_not_replaced_untold(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """As by a channel that is not there, or where a file was damaged since."""
    for name in ("a", "=b"):
        write(run.home / "in" / f"{name}.png", picture((5, 5)))
    out, given = run.home / "out", ("in", "--export", "labels,tables")
    run(*given)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (run.home / "in" / "=b.png").write_bytes(b"none")
    for words, beside, lost, done in (
        (given, "out.new", "1 image(s) that failed now (=b)", 1),
        ((*given, "--channel", "5"), "out.new2", "2 image(s) that failed now (=b, a)", 0),
    ):
        capsys.readouterr()
        run(*words, code=1)
        told = capsys.readouterr().err
        assert f"{out} stays as it is, for it holds results of {lost}" in told and "--replace" in told
        assert f"the new results, of {done} of 2 images, are in {run.home / beside};" in told
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert len(list((run.home / beside / "labels").iterdir())) == done
    run(*given, "--replace", code=2)
    assert [path.name for path in (out / "labels").iterdir()] == ["a.tif"]
    assert not (run.home / "out.new3").exists()


def test_results_that_are_a_link_stay_one(run: Run, stopped: Callable[..., None]) -> None:
    """As to a disk with room for them, beside which what is unfinished lies as well."""
    for name in ("a", "b"):
        write(run.home / "in" / f"{name}.png", picture((5, 5)))
    (run.home / "disk" / "results").mkdir(parents=True)
    (run.home / "out").symlink_to(Path("disk", "results"))
    for _ in range(2):
        stopped("in")
        assert (run.home / "disk" / ".results.unfinished" / "new").is_dir()
        run("in")
        assert (run.home / "out").is_symlink() and (run.home / "disk" / "results" / "labels" / "a.tif").is_file()
    assert [path.name for path in (run.home / "disk").iterdir()] == ["results"]
    assert sorted(path.name for path in run.home.iterdir()) == ["disk", "in", "out"]


def test_results_of_nothing_lock_no_folder(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no image could be read, the table has them all the same."""
    (run.home / "broken.png").write_bytes(b"none")
    run("broken.png", code=2)
    shown = capsys.readouterr()
    assert "broken; once they are mended" in shown.err and "0 images" not in shown.out
    write(run.home / "a.png", picture((5, 5)))
    run("a.png")
    assert [row["image"] for row in run.rows()] == ["a"]


def test_wrong_members_are_told_before_the_results_of_other_images(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are wrong, and to give --replace for the one would be of no use."""
    for name in ("a", "b"):
        write(run.home / f"{name}.png", picture((5, 5)))
    run("a.png")
    assert main(["predict", "b.png", "--out", str(run.home / "out"), "--preset", "slow"]) == 2
    told = capsys.readouterr().err
    assert "no preset 'slow'" in told and "holds results" not in told


def test_durations() -> None:
    told = [readable_seconds(seconds) for seconds in (0, 59.4, 60, 3599, 3600, 100_000)]
    assert told == ["0 s", "59 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "27 h 46 min"]


@pytest.fixture
def saved_meanwhile(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command while somebody saves a file over its earlier results, after its own look at them."""

    def save(name: str, *words: str, code: int) -> None:
        def segment(ensemble: Any, image: np.ndarray, zoom: tuple[float, float]) -> SimpleNamespace:
            path = run.home / "out" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"mine")
            return SimpleNamespace(masks=spots(image))

        with monkeypatch.context() as patch:
            patch.setattr("kernel.scale.ScaledEnsemble.segment", segment)
            run(*words, code=code)

    return save


@pytest.mark.parametrize("name", ["labels/a.tif", "labels/a_corrected.tif"])
def test_work_that_is_saved_while_it_runs_stays(
    run: Run, saved_meanwhile: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write(run.home / "in" / "a.png", picture((5, 5)))
    given = ["in", "--export", "labels,tables"]
    run(*given)
    for beside in ("out.new", "out.new2"):
        (run.home / "in" / "broken.png").touch()
        capsys.readouterr()
        saved_meanwhile(name, *given, code=1)
        told = capsys.readouterr().err
        out = run.home / "out"
        assert f"{out} stays as it is, for 1 file(s) in it were changed or added while this ran ({name})" in told
        assert f"the new results, of 1 of 2 images, are in {run.home / beside};" in told
        assert "goes on from there" not in told and "the same command" not in told
        assert (out / name).read_bytes() == b"mine" and (out / "images.csv").is_file()
        assert cv2.imread(str(run.home / beside / "labels" / "a.tif"), cv2.IMREAD_UNCHANGED).max() == 1
        held = {path.name for path in (run.home / beside).iterdir()}
        assert held == {"labels", "cells.csv", "images.csv", WRITTEN_NAME}
        run(*given, code=2)
        assert "that may have been changed or added since it was written" in capsys.readouterr().err
        (run.home / "in" / "broken.png").unlink()
        saved_meanwhile(name, *given, "--replace", code=0)  # as was asked for
        assert not (out / name).exists() or (out / name).read_bytes() != b"mine"
    assert {path.name for path in run.home.iterdir()} == {"in", "out", "out.new", "out.new2"}


def test_a_folder_that_somebody_has_made_meanwhile_stays(run: Run, saved_meanwhile: Callable[..., None]) -> None:
    write(run.home / "a.png", picture((5, 5)))
    saved_meanwhile("notes.txt", "a.png", code=1)
    assert [path.name for path in (run.home / "out").iterdir()] == ["notes.txt"]
    assert (run.home / "out.new" / "labels" / "a.tif").is_file() and not (run.home / ".out.unfinished").exists()


def test_what_a_system_puts_into_folders_while_it_runs_is_nobodys(
    run: Run, saved_meanwhile: Callable[..., None]
) -> None:
    write(run.home / "a.png", picture((5, 5)))
    run("a.png")
    for name in ("labels/.DS_Store", "pictures/Thumbs.db", "labels/@eaDir/a.tif/SYNOPHOTO_THUMB_M.jpg",
                 "@eaDir/labels@SynoEAStream", ".~lock.images.csv#"):  # fmt: skip
        saved_meanwhile(name, "a.png", code=0)
        (run.home / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (run.home / "out" / name).touch()
        run("a.png")
    assert sorted(path.name for path in run.home.iterdir()) == ["a.png", "out"]
