"""`synthesize`: write synthetic annotated images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernel.commands.options import whole_number
from kernel.commands.rules import CommandRules
from kernel.data.synthetic.generate import write_dataset
from kernel.settings import CELL_TYPES


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser("synthesize", help="write a folder of synthetic annotated images")
    parser.add_argument("out", type=Path, help="the folder: train.csv and train/<id>.png")
    parser.add_argument(
        "--images", type=whole_number(1), default=10, help="images per cell type (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=whole_number(), default=0, help="other seeds share no image (default: %(default)s)"
    )
    parser.set_defaults(run=run_synthesize, rules=CommandRules())


def run_synthesize(options: argparse.Namespace) -> None:
    """Write synthetic images."""
    write_dataset(options.out, dict.fromkeys(CELL_TYPES, options.images), options.seed)
    print(f"{options.images} images of each of {', '.join(CELL_TYPES)}: {options.out}")
