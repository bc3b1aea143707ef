"""`convert`: the tensors of another trainer's weight file as safetensors, no code in it run."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.files import written_file


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "convert",
        help="take the tensors out of a weight file of another trainer, whatever else is in it; no code in it is run",
    )
    parser.add_argument("file", type=Path, help="a PyTorch or safetensors file")
    parser.add_argument("out", type=Path, help="the safetensors file to write, which must not be there yet")
    parser.add_argument("--take", metavar="NAME", help="the copy to take, where the file holds several")
    parser.add_argument(
        "--stem-stride",
        type=int,
        choices=(1, 2),
        help="the stride of the first convolution, to be noted in the file (default: as its configuration has it)",
    )
    parser.add_argument(
        "--pixel-size",
        type=float,
        metavar="UM",
        help="side of a pixel, in micrometres, of the images that it has learned from, to be noted in the file "
        "(default: as the file says)",
    )
    parser.set_defaults(run=run_convert)


def run_convert(options: argparse.Namespace) -> None:
    """Write the tensors, and tell what they are."""
    from safetensors.torch import save_file

    from kernel.models.foreign import describe, read_foreign
    from kernel.scale import PIXEL_SIZE_KEY, told_pixel_um

    if options.pixel_size is not None and not (math.isfinite(options.pixel_size) and options.pixel_size > 0):
        raise InputError(f"--pixel-size {options.pixel_size:g}: it must be above 0")

    if options.out.suffix != ".safetensors":
        raise InputError(f"{options.out}: what is written is a safetensors file: give it a name ending in .safetensors")
    if options.out.exists():
        raise InputError(f"{options.out} is there already and stays: give another name, or take it away first")
    checkpoint, left_behind = read_foreign(options.file, options.take)
    stem_stride = options.stem_stride or checkpoint.stem_stride
    metadata = {"format": "pt"} | ({} if stem_stride is None else {"stem_stride": str(stem_stride)})
    pixel_size = options.pixel_size or told_pixel_um(options.file)
    metadata |= {} if pixel_size is None else {PIXEL_SIZE_KEY: f"{pixel_size:g}"}
    with written_file(options.out) as temporary:
        # Clones, for safetensors refuses tensors that share their numbers.
        state = {key: value.detach().clone().contiguous() for key, value in checkpoint.state.items()}
        save_file(state, temporary, metadata)
    print(f"{options.out}: {len(state)} tensors of {options.file}")
    for line in checkpoint.told:
        print(f"  {line}")
    if left_behind:
        print(f"  left behind: {', '.join(left_behind)}")
    print(f"  {describe(checkpoint, stem_stride, options.file)}")
