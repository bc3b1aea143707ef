"""`make torture`: faults, fuzz, benchmarks in small, and a soak; ends with what was survived and what was lost.

    python tests/torture.py [--examples 2000] [--images 1000]

Faults, those of docs/faults.md, and fuzz are the tests of tests/faults, with more examples than `make test` gives them.
The benchmarks are run at their smallest size; each counts as a fault that is survived or lost. The soak is the built
script on small images of which one in ten is at fault; its memory must stay as it is, and every image have its row.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from soak import Soak, soak

HERE = Path(__file__).resolve().parent
TRIED = [str(HERE / "faults"), str(HERE / "benchmarks")]


class Outcomes:
    """A plugin of pytest that counts how its tests ended."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.ended[report.outcome] += 1


def read_counts(path: Path) -> Counter[str]:
    """Inputs that fuzzing tried, by what they were: lines of a name and a number."""
    counts: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        name, _, number = line.rpartition(" ")
        counts[name] += int(number)
    return counts


def describe(outcomes: Outcomes, inputs: Counter[str], soaked: Soak) -> list[str]:
    """The last lines."""
    ended = outcomes.ended
    lines = [f"fuzz: {number} inputs of {name}" for name, number in sorted(inputs.items())]
    lines.append(soaked.describe())
    lost = ended["failed"] + soaked.lost
    lines.append(
        f"torture: {inputs.total() + soaked.images} inputs tried, {ended['passed'] + soaked.survived} faults survived, "
        f"{lost} lost, {ended['skipped']} not tried here"
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, help="of each fuzz")
    parser.add_argument("--images", type=int, default=1000, help="of the soak")
    options = parser.parse_args()
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts"
        os.environ |= {"TORTURE_EXAMPLES": str(options.examples), "TORTURE_COUNTS": str(counts)}
        # In two processes, as `make test`.
        ended = pytest.main(["-q", "-m", "", "-n", "2", "--dist", "loadgroup", *TRIED], plugins=[outcomes])
        soaked = soak(Path(folder) / "soak", options.images)
        lines = describe(outcomes, read_counts(counts), soaked)
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if ended != pytest.ExitCode.OK or soaked.lost else 0


if __name__ == "__main__":
    sys.exit(main())
