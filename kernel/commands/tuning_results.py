"""Where the two ways of `tune` leave what they found: the evidence in a folder, the settings in the manifest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

from bundle.folders import refuse_to_replace, replace_folder, scratch_folder
from kernel.commands.common import told_written
from kernel.runtime.files import whole_file


def evidence_folder(options: argparse.Namespace, kind: str, names: Collection[str], marker: str) -> Path | None:
    """The folder for the evidence: --out, or with --write MANIFEST-KIND beside the manifest; else None, for none.

    Raises InputError where it holds anything else than earlier evidence, with files `names`, known by its `marker`.
    """
    out = options.out
    if out is None and options.write:
        out = options.manifest.with_name(f"{options.manifest.stem}-{kind}")
    if out is not None:
        refuse_to_replace(out, names, marker=marker)
    return out


def leave_results(
    options: argparse.Namespace, text: str, difference: str, out: Path | None, write_files: Callable[[Path], None]
) -> None:
    """Write the evidence by `write_files` into `out`, and with --write the manifest's new `text`; say so.

    The manifest is put in its place last: not without the evidence.
    """
    print(difference, end="")
    with ExitStack() as stack:
        if options.write and difference:
            stack.enter_context(whole_file(options.manifest)).write_bytes(text.encode("utf-8"))
        if out is not None:
            scratch = stack.enter_context(scratch_folder(out.parent, out.name)) / "new"
            scratch.mkdir()
            write_files(scratch)
            replace_folder(scratch, out)
    if out is not None:
        print(f"evidence: {out}")
    if options.write:
        print(told_written(options.manifest, difference))
