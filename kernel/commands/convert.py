"""`convert`: the tensors of a weight file as safetensors: of another trainer, no code in it run; or smaller."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernel.commands.options import positive_number, whole_number
from kernel.commands.rules import CommandRules
from kernel.errors import InputError
from kernel.files import written_file

CONVERT_HELP = """\
Take the tensors out of a weight file of any trainer, whatever else is in it; no code in it is run. Tensors that no
detector runs (of timm's classifier) are left out. What a member's file says of itself is kept, and so is the form of
its numbers where no option changes it.

    python -m kernel convert theirs.pth member.safetensors
    python -m kernel convert member.safetensors half.safetensors --half
    python -m kernel convert member.safetensors quarter.safetensors --int8"""


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "convert",
        help="take the tensors out of a weight file of any trainer, or store a member in fewer bits",
        description=CONVERT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a PyTorch or safetensors file")
    parser.add_argument("out", type=Path, help="the safetensors file to write, which must not be there yet")
    parser.add_argument("--take", metavar="NAME", help="the copy to take, where the file holds several")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--half", action="store_true", help="store the numbers as float16: half the size")
    sizes.add_argument(
        "--int8",
        action="store_true",
        help="store weights as whole numbers of 8 bits, with a scale for each row (of most layers, an output channel), "
        "and the rest as float16: a quarter of float32's size. Only this project reads such a file; --half makes one "
        "of it that others read",
    )
    parser.add_argument(
        "--fraction-bits",
        type=whole_number(1, 9),
        metavar="BITS",
        help="with --half: round each weight to so many bits of fraction, 1 to 9 of the 10 that a float16 has: a file "
        "as large, which git and zip compress to less",
    )
    parser.add_argument(
        "--stem-stride",
        type=whole_number(),
        choices=(1, 2),
        help="the stride of the first convolution, to be noted in the file (default: as its configuration has it)",
    )
    parser.add_argument(
        "--encoder",
        metavar="timm:NAME",
        help="the network of timm that is its encoder, to be noted in the file (default: as its configuration has it)",
    )
    parser.add_argument(
        "--pixel-size",
        type=positive_number(),
        metavar="UM",
        help="side of a pixel, in micrometres, of the images that it has learned from, to be noted in the file "
        "(default: as the file says)",
    )
    parser.set_defaults(
        run=run_convert, rules=CommandRules(reads=["file"], unflagged=["file"], writes=lambda options: [options.out])
    )


def is_in_eight_bits(path: Path) -> bool:
    """Whether a weight file, which can be read, has weights of 8 bits."""
    from safetensors import safe_open

    from kernel.models.eight_bits import SCALE_SUFFIX

    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "np") as file:
        return any(key.endswith(SCALE_SUFFIX) for key in file.keys())  # noqa: SIM118 - it is no dict


def run_convert(options: argparse.Namespace) -> None:
    """Write the tensors, and tell what they are."""
    import torch
    from safetensors.torch import save_file

    from kernel.models.checkpoints import shorten_list
    from kernel.models.foreign import describe, noted, read_foreign
    from kernel.models.saving import as_os_errors, stored_tensors
    from kernel.scale import PIXEL_SIZE_KEY

    if options.fraction_bits is not None and not options.half:
        beside = "leave --int8 out, and give --half" if options.int8 else "give --half as well"
        raise InputError(f"--fraction-bits is of float16 numbers: {beside}")
    if options.out.suffix != ".safetensors":
        raise InputError(f"{options.out}: what is written is a safetensors file: give it a name ending in .safetensors")
    if options.out.exists() or options.out.is_symlink():
        raise InputError(f"{options.out} is there already and stays: give another name, or take it away first")
    checkpoint, left_behind = read_foreign(options.file, options.take)
    checkpoint = noted(checkpoint, str(options.file), options.stem_stride, options.encoder)
    metadata = dict(checkpoint.metadata)
    if options.pixel_size is not None:
        metadata[PIXEL_SIZE_KEY] = f"{options.pixel_size:g}"
    int8 = options.int8 or (is_in_eight_bits(options.file) and not options.half)
    state = stored_tensors(checkpoint.state, options.half or int8, options.fraction_bits, int8)
    with written_file(options.out) as temporary, as_os_errors():
        save_file(state, temporary, metadata)
    kept = checkpoint.state.keys() & state.keys()
    print(f"{options.out}: {len(kept)} tensors of {options.file}")
    if len(kept) < len(checkpoint.state):
        print(f"  {len(checkpoint.state) - len(kept)} tensors that no detector runs are left out")
    wide = [key for key in state if key in kept and state[key].dtype == torch.float32] if options.half or int8 else []
    if wide:
        print(f"  {len(wide)} tensors stay float32, whose numbers are beyond float16: {shorten_list(wide)}")
    for line in checkpoint.told:
        print(f"  {line}")
    if left_behind:
        print(f"  left behind: {', '.join(left_behind)}")
    print(f"  {describe(checkpoint, options.file)}")
