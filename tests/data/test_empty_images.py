"""Images in which nothing is: prepared, read, and told from those that nobody annotated."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest
from cases import GRID, THREE, competition, draw_image, rows_of_cells, write_rows

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.errors import InputError
from kernel.training.crops import CropDataset
from kernel.training.samples import read_training_images


def test_an_empty_annotation_is_an_image_without_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = competition(tmp_path / "cells", [*THREE[1:], ("nothing", "cort", ())])
    out = tmp_path / "out"
    assert main(["prepare", "--competition", str(folder), "--split", "none", "--out", str(out)]) == 0
    assert "images without cells, kept: what is found in them is wrong: 1\n  nothing\n" in capsys.readouterr().out
    for source in (folder, out):
        cells = {image.image_id: len(image.labels) for image in list_annotated(source)}
        assert cells == {"two": len(GRID), "three": len(GRID), "nothing": 0}
        (empty,) = (image for image in list_annotated(source) if image.image_id == "nothing")
        assert len(empty.masks()) == 0 and empty.cell_type == "cort"
        dataset = CropDataset(read_training_images(source), 6, 64, seed=0)
        assert {bool(len(dataset[index].labels)) for index in range(6)} == {True, False}


@pytest.mark.parametrize("empty_first", [True, False])
def test_an_empty_annotation_beside_cells_is_a_contradiction(tmp_path: Path, empty_first: bool) -> None:
    folder = competition(tmp_path / "cells", THREE)
    rows = rows_of_cells("one", "cort", GRID)
    empty = rows_of_cells("one", "cort", ())
    write_rows(folder, [*empty, *rows] if empty_first else [*rows, *empty])
    with pytest.raises(InputError, match=r"row \d+ \(image 'one'\): .* other rows of this one have some"):
        list_annotated(folder)
    assert main(["prepare", "--competition", str(folder), "--split", "none", "--out", str(tmp_path / "out")]) == 0
    (image,) = list_annotated(tmp_path / "out")
    assert len(image.labels) == len(GRID)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert len(report["dropped_cells"]) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_listed_images_without_cells_are_kept_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: bool
) -> None:
    (tmp_path / "images").mkdir()
    names = ["SHSY5Y_Phase_A1_1_00d00h00m_1", "SHSY5Y_Phase_A2_1_00d00h00m_1", "SHSY5Y_Phase_A3_1_00d00h00m_1", "mine"]
    for number, name in enumerate(names):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), draw_image(number, ()))
    outline = [[10, 20, 40, 20, 40, 50]]
    data = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "height": 160, "width": 160} for n, name in enumerate(names, start=1)
        ],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": outline},
            {"id": 2, "image_id": 3, "category_id": 1, "segmentation": [[1, 2]]},  # not empty: it cannot be read
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(data), encoding="utf-8")
    words = ["--livecell-annotations", str(tmp_path / "a.json"), "--livecell-images", str(tmp_path / "images")]
    words += ["--split", "none", "--out", str(tmp_path / "out"), *(["--keep-empty"] if keep else [])]
    assert main(["prepare", *words]) == 0
    cells = {image.image_id: len(image.labels) for image in list_annotated(tmp_path / "out")}
    assert cells == ({names[0]: 1, names[1]: 0} if keep else {names[0]: 1})
    told = capsys.readouterr().out
    assert ("its cell line is unknown" if keep else "--keep-empty") in told


def test_pseudo_labels_of_nothing_are_kept_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("a", "b")):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), draw_image(number, ()))
    (tmp_path / "s.csv").write_text("id,predicted\na,5 9\nb,\n", encoding="utf-8")
    words = ["--pseudo-labels", str(tmp_path / "s.csv"), "--images", str(tmp_path / "images"), "--cell-types", "cort"]
    assert main(["prepare", *words, "--out", str(tmp_path / "out")]) == 0
    assert [image.image_id for image in list_annotated(tmp_path / "out")] == ["a"]
    assert main(["prepare", *words, "--out", str(tmp_path / "out"), "--keep-empty"]) == 0
    assert {image.image_id: len(image.labels) for image in list_annotated(tmp_path / "out")} == {"a": 1, "b": 0}
    capsys.readouterr()
    folder = competition(tmp_path / "cells", THREE)
    assert main(["prepare", "--competition", str(folder), "--keep-empty", "--out", str(tmp_path / "no")]) == 2
    assert "--keep-empty belongs to --livecell-annotations or --pseudo-labels" in capsys.readouterr().err
