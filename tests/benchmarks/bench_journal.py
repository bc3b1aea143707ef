"""What the journal and the submission.csv that is made anew cost: their share of a run's time.

    PYTHONPATH=.:tests python tests/benchmarks/bench_journal.py --images 240 --seconds 2

Each image's rows are as long as the competition's, 500 cells of 30 runs; `--seconds` is what an image takes on all
devices together, by the clock. The journal's cost does not depend on it; submission.csv is written more rarely, the
more it costs. Rows are checked with or without a journal, so that this is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.saved_run import SAVING_SHARE, SavedRun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    # 30 runs a cell, each cell in pixels of its own, as in an image of 520 x 704.
    rles = [" ".join(f"{1 + 704 * row + cell} 1" for row in range(30)) for cell in range(options.cells)]
    answer = {"rles": rles, "image_shape": [520, 704], "peaks": [1.0, None], "summary": {"cells": len(rles)}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"image{number:05}.png" for number in range(options.images)]
        for path in paths:
            path.write_bytes(bytes(700_000))
        working = folder / "working"
        working.mkdir()
        begun = time.perf_counter()
        saved = SavedRun(working, paths, paths)
        saved.go_on({"journal": "benchmark"})
        start = time.perf_counter() - begun
        spent, checks, saves, slowest_save = 0.0, 0.0, 0, 0.0
        checked = SubmissionWriter(path.stem for path in paths)
        for path in paths:
            saved._last_save -= options.seconds  # as if the image had taken its time
            before, begun = saved._last_save, time.perf_counter()
            saved.succeed(path, answer, "cpu")
            spent += time.perf_counter() - begun
            begun = time.perf_counter()
            checked.add(path.stem, rles, (520, 704))
            checks += time.perf_counter() - begun
            if saved._last_save != before:
                saves += 1
                slowest_save = max(slowest_save, saved._save_seconds)
        begun = time.perf_counter()
        saved.write()
        end = time.perf_counter() - begun
        begun = time.perf_counter()
        saved.close()
        again = SavedRun(working, paths, paths)
        again.go_on({"journal": "benchmark"})
        resumed = time.perf_counter() - begun
        assert not again.todo
        total = options.images * options.seconds
        size = (working / "journal.log").stat().st_size / 2**20
    print(f"{options.images} images of {options.cells} cells, {options.seconds:g} s each; journal {size:.0f} MB")
    print(f"start {1e3 * start:.0f} ms; {1e3 * spent / options.images:.1f} ms an image, with {saves} writings of "
          f"submission.csv of up to {1e3 * slowest_save:.0f} ms, at most one in {SAVING_SHARE} times that; "
          f"end {1e3 * end:.0f} ms; a second start reads it in {resumed:.1f} s")  # fmt: skip
    share, checking = 100 * (start + spent - checks + end) / total, 100 * checks / total
    print(f"share of the run: {share:.2f} %; the checks of the rows take {checking:.2f} %")


if __name__ == "__main__":
    main()
