"""Prepare data, train members, validate and use them: `python -m kernel <command> --help` lists a command's options.

    python -m kernel synthesize runs/cells --images 40 --seed 1
    python -m kernel prepare --competition runs/cells --out runs/prepared
    python -m kernel train --data runs/cells --recipe bundle/synthetic/recipe.toml --kind htc --out runs/htc.safetensors
    python -m kernel validate --members shipped --data runs/test

Exit codes: 0 done, 1 something failed, 2 something given was wrong.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - an older one cannot even read the modules below
    print(f"`python -m kernel` needs Python 3.11 or later, this is {sys.version.split()[0]}", file=sys.stderr)
    raise SystemExit(2)

from kernel.errors import InputError
from kernel.folders import end_on_sigterm
from kernel.log import show_log
from kernel.output import code_of, let_readers_leave
from kernel.processes import is_one_of_several
from kernel.runtime.ending import end_at_once
from kernel.signals import ended_at_once
from kernel.text import parse_toml

#: The name of the installed package.
DISTRIBUTION = "inside-ensemble"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    try:
        return code_of(lambda: run_command(arguments))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__:
            raise  # ours: a defect, not an environment
        print(
            f"error: {error.name} is not installed: `make .venv/complete` in a checkout brings all that is needed, "
            "`pip install '.[formats,train]'` what an installed package may lack",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130


def run_command(arguments: Sequence[str] | None) -> None:
    """Run the command that the command line names.

    Raises:
        InputError, RunError: as the command does; or options that do nothing, or not together.
    """
    with ended_at_once():  # imports take seconds, of torch above all, which `--help` need not
        options = parse_arguments(arguments)
        show_log(sys.stderr, "%(message)s")
        from kernel.runtime.limits import limit_threads

        limit_threads()
    refuse_processes(options)
    options.run(options.rules.checked(options))


def refuse_processes(options: argparse.Namespace) -> None:
    """Refuse several processes of torchrun for a command that is not made for them: all would write one folder.

    Raises:
        InputError: WORLD_SIZE tells of several.
    """
    if is_one_of_several() and not getattr(options, "in_processes", False):
        raise InputError(
            "WORLD_SIZE tells of several processes, as torchrun starts them: of these commands `train` alone is made "
            "for that; start this one without torchrun (validate shares images by --device cuda:0,cuda:1)"
        )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `run` is the command's function.

    Raises:
        InputError: options that do nothing, or not together.
    """
    from kernel.commands import convert, predict, prepare, select, synthesize, train, train_members, tune, validate
    from kernel.commands.options import CommandParser

    parser = CommandParser(
        prog="python -m kernel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show the version, and end")
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in (synthesize, prepare, train, train_members, validate, tune, select, predict, convert):
        command.add_parser(commands)
    return parser.parse_args(arguments)


class ShowVersion(argparse.Action):
    """Prints the version, which is looked for only then, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(program_version())
        parser.exit()


def program_version() -> str:
    """The version of the checkout that this is part of, or of the installed package."""
    path = Path(__file__).resolve().parents[1] / "pyproject.toml"
    project = parse_toml(path.read_text(encoding="utf-8")).get("project", {}) if path.is_file() else {}
    if project.get("name") == DISTRIBUTION:  # and not that of a project that this was copied into
        return f"{DISTRIBUTION} {project['version']}, a checkout"
    try:
        return f"{DISTRIBUTION} {version(DISTRIBUTION)}"
    except PackageNotFoundError:  # the folder was copied here
        return f"{DISTRIBUTION}, of a version that is not known"


def run() -> int:
    """The command line as a program of its own. Returns the exit code.

    One of several processes that fails ends at once, so that torchrun ends the others. By Python's own end it would
    leave their group, where NCCL lets it wait for the others, which wait for its part of a step.
    """
    let_readers_leave()
    end_on_sigterm()
    if not is_one_of_several():
        return main()
    try:
        code = main()
    except Exception:  # noqa: BLE001 (shown as Python would do)
        traceback.print_exc()
        code = 1
    if code:
        end_at_once(code)
    return code


if __name__ == "__main__":
    raise SystemExit(run())
