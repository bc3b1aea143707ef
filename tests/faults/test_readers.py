"""Faults of the built script: what lies among the images, as strangers bring it. In one run, each costs itself."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from built_script import BuiltRun, build_demo

from kernel.data.synthetic.generate import generate_image
from kernel.images.png import png_chunk
from kernel.postprocess.submitted import read_submission

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("readers"),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names and entries"),
]

CELLS = generate_image("cort", 3, (96, 128)).image
WHOLE = cv2.imencode(".png", CELLS)[1].tobytes()
#: As long as a file's name may be.
LONG_NAME = "n" * 251
NAMES = ("a,b", 'say "cells"', "two\nlines", "=1+1", LONG_NAME, "Z\u00e4hlung \u7d30\u80de", " blanks ")


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def with_wild(value: float) -> np.ndarray:
    pixels = CELLS.astype(np.float64)
    pixels[40, 50] = value
    return pixels


def lying_png() -> bytes:
    """It tells of 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    return WHOLE[:8] + png_chunk(b"IHDR", head) + WHOLE[33:]


#: Files that cannot be read, and what the log says of each.
BROKEN = {
    **{f"short{size}.png": (WHOLE[:size], "the PNG is truncated") for size in (8, 16, 19, 20, 23, 24, 32, 40)},
    "empty.png": (b"", "the file is empty"),
    "short.jpg": (cv2.imencode(".jpg", CELLS)[1].tobytes()[:4], "the JPEG is truncated"),
    "rows.jpg": (
        cv2.imencode(".jpg", CELLS)[1].tobytes()[:-200] + b"\xff\xd9",
        "the JPEG is damaged: its data end before its last rows",
    ),
    "cut.tif": (tiff(CELLS)[:9], "the TIFF is truncated"),
    "lying.png": (lying_png(), "its header tells of 60000 x 60000 pixels, more than it can hold"),
    "text.png": (b"id,predicted\n", "it is no PNG, TIFF or JPEG"),
}
#: Files that are read, and what the log says of each.
ODD = {
    "wild.tif": (tiff(with_wild(1e300)), ""),
    "nan.tif": (tiff(CELLS * np.nan), "nan.tif holds no finite value: it is read as uniform gray"),
    "gap.tif": (tiff(with_wild(np.inf)), "gap.tif: 1 of 12288 values are not finite"),
    "deep.tif": (tiff(CELLS, metadata=None, description='{"shape": ' + "[" * 100000), ""),
    "comment.png": (
        WHOLE[:33] + png_chunk(b"tEXt", b"Comment\0stage 3")[:-4] + bytes(4) + WHOLE[33:],
        "",
    ),
    "film.jpg": (cv2.imencode(".jpg", CELLS)[1].tobytes() + b"ftypmp42" + bytes(range(255)) * 800, ""),
}


@dataclass(frozen=True)
class Ended:
    code: int
    log: str
    rows: dict[str, list[str]]
    summary: dict[str, Any]


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Addresses of sockets are short."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def ended(wheels_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A scoring run over all of it."""
    run = BuiltRun(build_demo(tmp_path_factory.mktemp("dist")), tmp_path_factory.mktemp("run"), wheels_dir)
    for name, (content, _) in {**BROKEN, **ODD}.items():
        (run.images / name).write_bytes(content)
    for name in ("whole", *NAMES):
        (run.images / f"{name}.png").write_bytes(WHOLE)
    (run.images / "whole.tif").write_bytes(tiff(CELLS))
    Path(os.fsdecode(os.fsencode(run.images) + b"/Kan\xe4le.png")).write_bytes(WHOLE)
    (run.images / "dangling.png").symlink_to("nowhere.png")
    (run.images / "circle.png").symlink_to("circle.png")
    (run.images / "folder.png").mkdir()
    os.mkfifo(run.images / "pipe.png")
    with in_folder(run.images), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        (run.images.parent / "sample_submission.csv").write_text(
            'id,predicted\nwhole,1 1\nasked for,\n"a,b",\n"lost, too",\nempty,\n', encoding="utf-8", newline="\n"
        )
        code, log = run.run({"KAGGLE_IS_COMPETITION_RERUN": "1"})
    summary = json.loads((run.working / "summary.json").read_text(encoding="utf-8"))
    return Ended(code, log, read_submission(run.submission), summary)


def test_the_run_ends_well_and_without_a_traceback(ended: Ended) -> None:
    assert ended.code == 0 and "Traceback" not in ended.log, ended.log
    assert ended.rows["whole"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_costs_itself(ended: Ended, name: str) -> None:
    image_id = Path(name).stem
    assert ended.rows[image_id] == [] and BROKEN[name][1] in ended.summary["failed"][image_id]
    assert BROKEN[name][1] in ended.log


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_read(ended: Ended, name: str) -> None:
    image_id = Path(name).stem
    assert image_id not in ended.summary["failed"] and ODD[name][1] in ended.log
    assert bool(ended.rows[image_id]) == (name != "nan.tif")


@pytest.mark.parametrize("name", NAMES)
def test_an_odd_name_is_an_id(ended: Ended, name: str) -> None:
    assert ended.rows[name] == ended.rows["whole"]


@pytest.mark.parametrize(
    "told",
    [
        "1 with a name that is no text in UTF-8 (Kan\\udce4le.png)",
        "2 broken links (circle.png, dangling.png)",
        "1 sub-folder (folder.png/)",
        "2 that are no plain files (pipe.png, socket.png)",
    ],
)
def test_what_is_passed_over_is_told(ended: Ended, told: str) -> None:
    assert told in ended.log


def test_of_two_images_of_one_name_the_first_is_used(ended: Ended) -> None:
    assert "have the same name without ending: whole.png and whole.tif; the first one is used" in ended.log


def test_images_that_are_asked_for_and_not_there_have_rows(ended: Ended) -> None:
    assert "2 of the 5 images that sample_submission.csv asks for are not there, and have empty rows" in ended.log
    assert ended.rows["asked for"] == ended.rows["lost, too"] == []
    assert ended.summary["absent_ids"] == ["asked for", "lost, too"] and not ended.summary["spelled_ids"]
    assert len(ended.rows) == len(BROKEN) + len(ODD) + 1 + len(NAMES) + 2
