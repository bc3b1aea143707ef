"""What the sub-commands share: options, questions on the terminal, and which version of the kernel is meant."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bundle.client import KaggleClient
from bundle.push import PUSHED_NAME, PushRecord, read_record
from bundle.waiting import Waiting
from kernel.commands.options import CommandParser, number, whole_number
from kernel.errors import InputError
from kernel.locks import sole_writer
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest
from kernel.signals import HANG_UP
from kernel.text import shell_word

#: The exit codes of `end_on_sigterm`.
SIGNAL_CODES = tuple(128 + number for number in (signal.SIGTERM, *HANG_UP))
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED_MANIFEST = ROOT / "weights_manifest.json"
#: What `init` writes, and all commands take from then on.
OWN_MANIFEST = ROOT / "mine.json"
USUAL_OUT = ROOT / "dist"
#: What options are read by.
seconds, positive_int = number(0, 1e7), whole_number(1)


def usual_manifest() -> Path:
    """The manifest that commands take where none is named: the user's own, else the published one."""
    return OWN_MANIFEST if OWN_MANIFEST.is_file() else PUBLISHED_MANIFEST


def add_manifest_option(parser: argparse.ArgumentParser, inherited: bool = False) -> None:
    """Add --manifest; `inherited`: it may also stand before the action, and what stands there counts."""
    parser.add_argument(
        "--manifest",
        type=Path,
        default=argparse.SUPPRESS if inherited else usual_manifest(),
        help="the ensemble and the kernel's identity (default: mine.json beside this file, which `init` writes, or "
        "else weights_manifest.json)",
    )


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """Add --out."""
    parser.add_argument(
        "--out", type=Path, default=USUAL_OUT, help="where results are (default: dist beside this file)"
    )


def alone_in(out: Path) -> AbstractContextManager[None]:
    """Let no other build or push work in an output folder meanwhile: their files would mix, or be sent twice.

    The lock lies in the folder, so that each --out has its own, however it is written. Where there is no folder,
    nothing is locked: what needs one says so.

    Raises:
        InputError: as `sole_writer`, when the block is entered.
    """
    if not out.is_dir():
        return nullcontext()
    return sole_writer(
        out / "kernel",
        doing=f"builds in {out}, or pushes what is there: wait until it is done, or build into another --out",
    )


def add_version_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which version of which kernel is meant."""
    add_manifest_option(parser)
    add_out_option(parser)
    parser.add_argument(
        "--version",
        type=positive_int,
        metavar="N",
        help="of the kernel (default: the one pushed last from here, or else Kaggle's last one)",
    )


def add_wait_options(parser: CommandParser, what: str) -> None:
    """Add --wait, --wait-timeout and --poll."""
    parser.add_argument("--wait", action="store_true", help=f"until {what}")
    parser.add_argument(
        "--wait-timeout",
        type=seconds,
        default=12 * 3600.0,
        metavar="SECONDS",
        help="wait no longer (default: 12 hours)",
    )
    add_poll_option(parser)
    parser.needs(["wait_timeout", "poll"], ["wait"])


def add_poll_option(parser: argparse.ArgumentParser) -> None:
    """Add --poll."""
    parser.add_argument(
        "--poll", type=seconds, default=20.0, metavar="SECONDS", help="between questions to Kaggle (default: 20)"
    )


def waiting_of(options: argparse.Namespace, progress: Callable[[str], None], again: str) -> Waiting:
    """What the options of `add_wait_options` say; `again`: what to do where the waiting ends too early."""
    return Waiting(options.wait_timeout, options.poll, progress, again)


def meant_options(options: argparse.Namespace) -> str:
    """What a command that is named in a message needs to mean the same kernel, results and version.

    That is --manifest, --out and --version where they are not the default; begins with a space, or is empty.
    """
    words = []
    if options.manifest.resolve() != usual_manifest().resolve():
        words += ["--manifest", shell_word(options.manifest)]
    out, version = getattr(options, "out", None), getattr(options, "version", None)
    if out is not None and out.resolve() != USUAL_OUT.resolve():
        words += ["--out", shell_word(out)]
    if version is not None:
        words += ["--version", str(version)]
    return "".join(f" {word}" for word in words)


@dataclass(frozen=True)
class KernelVersion:
    """A version of the manifest's kernel."""

    manifest: Manifest
    kernel: str
    number: int
    options: str  # `meant_options`
    record: PushRecord | None = None  # where it is what was pushed last from here


def chosen_version(options: argparse.Namespace, client: KaggleClient) -> KernelVersion:
    """The version that the options mean.

    Raises:
        InputError: the manifest is wrong, or there is no version yet.
    """
    manifest = read_manifest(options.manifest)
    kernel = manifest.kernel.id
    number, record = chosen_number(options, kernel, client)
    return KernelVersion(manifest, kernel, number, meant_options(options), record)


def chosen_number(options: argparse.Namespace, kernel: str, client: KaggleClient) -> tuple[int, PushRecord | None]:
    """The number of the version, and what was pushed last from here, where that is it; errors as `chosen_version`."""
    if options.version is not None:
        with contextlib.suppress(InputError):  # a damaged note, which this version does not need
            record = read_record(options.out)
            if record is not None and (record.kernel.lower(), record.version) == (kernel.lower(), options.version):
                return options.version, record
        return options.version, None
    record = read_record(options.out)
    if record is not None and record.kernel.lower() == kernel.lower():
        if record.version is not None:
            return record.version, record
        number = client.last_version(kernel)
        note(f"the answer to the last push was lost: version {number} is meant, Kaggle's last one")
        return number, record
    number = client.last_version(kernel)
    if record is not None:
        where = options.out / PUSHED_NAME
        note(f"{where} is of {record.kernel}: version {number} of {kernel} is meant, Kaggle's last one")
    return number, None


def note(text: str) -> None:
    """Print what a result does not hold, and its reader should know."""
    print(f"note: {text}", file=sys.stderr)


@dataclass
class Stand:
    """How far a command is."""

    text: str  # what is done, and what to do, where it is stopped now


@contextmanager
def telling_stops(text: str) -> Iterator[Stand]:
    """Where Ctrl-C or a signal ends the block, print how far it was, at first `text`, and end with the exit code."""
    stand = Stand(text)
    try:
        yield stand
    except KeyboardInterrupt:
        print(f"{line_end()}interrupted: {stand.text}", file=sys.stderr)
        raise SystemExit(130) from None
    except SystemExit as ending:
        if ending.code in SIGNAL_CODES:
            print(f"{line_end()}terminated: {stand.text}", file=sys.stderr)
        raise


def line_end() -> str:
    """What ends a progress line that may be on the terminal."""
    return "\n" if sys.stderr.isatty() else ""


def confirm(question: str, yes: bool) -> bool:
    """Whether the user agrees; `yes` answers for them.

    Raises:
        InputError: nobody can be asked.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{question} nobody can answer here: give --yes")
    print(f"{question} [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """A function that shows how far something is: on a terminal in one line, in a file a line where it has moved on.

    What has moved on is seen by what stands before the line's first comma.
    """
    on_terminal, last = sys.stdout.isatty(), ""

    def show(line: str) -> None:
        nonlocal last
        if on_terminal:
            print(f"\r\x1b[2K{line}", end="", flush=True)
        elif line.partition(",")[0] != last:
            print(line, flush=True)
        last = line.partition(",")[0]

    try:
        yield show
    finally:
        if on_terminal and last:
            print(flush=True)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
