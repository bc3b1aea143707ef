"""Faults of the built script: images whose size is odd, or lies, and a submission that is not what it should be."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from built_script import BuiltRun, build_demo, write_cells

from kernel.data.synthetic.generate import generate_image
from kernel.images.png import PNG_SIGNATURE, png_chunk
from kernel.postprocess.submitted import validate_submission

pytestmark = pytest.mark.xdist_group("faults")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def run(built: Path, tmp_path: Path, wheels_dir: Path) -> BuiltRun:
    return BuiltRun(built, tmp_path, wheels_dir)


def put_lying_png(path: Path, side: int, data_bytes: int) -> None:
    """Whole by its chunks and checksums; its data could hold the pixels, and do not."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        PNG_SIGNATURE
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", b"\x78\x01" + bytes(data_bytes))
        + png_chunk(b"IEND", b"")
    )


def summary_of(run: BuiltRun) -> dict[str, Any]:
    return json.loads((run.working / "summary.json").read_text(encoding="utf-8"))


def test_odd_sizes_and_headers_that_lie_lower_no_other_image(run: BuiltRun) -> None:
    good = [path.stem for path in write_cells(run.images, 10, side=64)]
    put_lying_png(run.images / "a_lies.png", 60_000, 4_000_000)
    put_lying_png(run.images / "b_lies.png", 9_000, 100_000)
    cv2.imwrite(str(run.images / "c_tiny.png"), np.full((1, 1), 90, np.uint8))
    code, log = run.run()
    assert code == 2 and "Traceback" not in log, log
    summary = summary_of(run)
    assert set(summary["failed"]) == {"a_lies", "b_lies"}
    assert {summary["images"][name]["quality"] for name in (*good, "c_tiny")} == {"full"}
    # The larger one cannot be tried at the start. It comes last, and counts for no other.
    others = [each for each in summary["time_forecasts"] if each["images_done"] < 12]
    assert others and max(each["seconds_at_full"][0] for each in others) < 3600


def test_a_large_image_is_done_in_tiles(run: BuiltRun) -> None:
    """As large, to this script, is what has more than 2000 pixels."""
    shape = (64, 803)
    cv2.imwrite(str(run.images / "large.png"), generate_image("cort", 1, shape).image)
    cv2.imwrite(str(run.images / "small.png"), generate_image("cort", 1, (64, 64)).image)
    _, whole_log = run.run()
    assert "tiles" not in whole_log
    whole = validate_submission(run.submission, {"large": shape, "small": (64, 64)})
    again = BuiltRun(run.script, run.home / "again", run.wheels)
    for path in run.images.iterdir():
        (again.images / path.name).write_bytes(path.read_bytes())
    again.with_script("WHOLE_PIXELS = LEAST_WHOLE_PIXELS = 2000\nTILE_SIDES = (512,)")
    code, log = again.run()
    assert code == 0 and "64 x 803 pixels (height x width): predicted in 3 tiles" in log, log
    assert "larger images in tiles of up to 512 pixels" in log
    found = validate_submission(again.submission, {"large": shape, "small": (64, 64)})
    assert found["small"] == whole["small"] and abs(len(found["large"]) - len(whole["large"])) <= 1
    assert len(set(found["large"]) & set(whole["large"])) >= 0.7 * len(whole["large"]) > 0


#: Memory is missing for what is wider than 700 pixels.
LITTLE_MEMORY = """
compute_all_features = Ensemble.compute_features


def compute_few_features(self, member, images):
    if images.shape[-1] > 700:
        raise MemoryError
    return compute_all_features(self, member, images)


Ensemble.compute_features = compute_few_features
TILE_SIDES = (1024,)
"""


def test_where_memory_is_missing_an_image_is_done_in_smaller_tiles(run: BuiltRun) -> None:
    cv2.imwrite(str(run.images / "large.png"), generate_image("cort", 1, (64, 1200)).image)
    write_cells(run.images, 1, side=64)
    run.with_script(LITTLE_MEMORY)
    code, log = run.run()
    assert code == 0 and "out of memory on cpu: trying again in smaller tiles" in log and "Traceback" not in log, log
    assert summary_of(run)["images"]["large"]["cells"] > 0


#: Masks overlap, and nothing looks at them before they are written.
OVERLAPPING = """
def check_image_rles(*_):
    pass


CellMasks.rles = lambda self: ["1 5", "3 4"]
"""


@pytest.mark.parametrize(("variables", "expected"), [({}, 1), ({"KAGGLE_IS_COMPETITION_RERUN": "1"}, 0)])
def test_the_written_file_is_checked(run: BuiltRun, variables: dict[str, str], expected: int) -> None:
    (path,) = write_cells(run.images, 1, side=64)
    run.with_script(OVERLAPPING)
    code, log = run.run(variables)
    assert code == expected, log
    (told,) = [line for line in log.splitlines() if "CRITICAL" in line]
    assert f"is not valid: row 3: image '{path.stem}': the mask overlaps that of row 2 at row 0, column 2" in told
