"""Where `tune` and `select` leave what they found: the evidence in a folder, the settings in the manifest."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from kernel.commands.common import add_replace, whole_folder
from kernel.commands.rules import Needs
from kernel.manifest.edit import replaced_manifest

#: For the rules of a command with these options.
REPLACE_NEEDS = Needs(["replace"], ["out", "write"])


def add_result_arguments(parser: argparse.ArgumentParser, out_help: str, write_help: str) -> None:
    """The options that say where results go, for `evidence_folder` and `leave_results`."""
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=out_help)
    parser.add_argument("--write", action="store_true", help=write_help)
    add_replace(parser, "replace what another command has left in that folder")


def evidence_folder(options: argparse.Namespace, ending: str) -> Path | None:
    """The folder for the evidence: --out, or with --write MANIFEST-ENDING beside the manifest; else None, for none."""
    if options.out is None and options.write:
        return options.manifest.with_name(f"{options.manifest.stem}-{ending}")
    return options.out


def leave_results(
    options: argparse.Namespace,
    text: str,
    difference: str,
    out: Path | None,
    write_files: Callable[[Path], None],
    what: str = "evidence",
) -> None:
    """Write the evidence, and with --write the manifest; print the manifest's difference, and what was written.

    The manifest is put in its place last: not without the evidence.

    Args:
        options: with those of `add_result_arguments` and --manifest.
        text: the manifest's new text.
        difference: between it and the old one; empty where there is none.
        out: the folder for the evidence; None: none is written.
        write_files: writes the evidence into a folder.
        what: the evidence is called where its folder is printed.

    Raises:
        InputError: `out` or the manifest cannot be written or replaced.
    """
    print(difference, end="")
    with ExitStack() as stack:
        if options.write and difference:
            stack.enter_context(replaced_manifest(options.manifest, text))
        if out is not None:
            write_files(stack.enter_context(whole_folder(out)))
    if out is not None:
        print(f"{what}: {out}")
    if options.write:
        manifest = options.manifest
        print(f"written: {manifest}" if difference else f"nothing to write: {manifest} stays as it is")
