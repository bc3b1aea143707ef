"""Options of both command lines: numbers, options that do nothing, and what was nearly named."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import build_kernel
from kernel.commands.options import CommandParser, number, positive_number, whole_number


def parser() -> CommandParser:
    made = CommandParser(prog="tool")
    made.add_argument("--wait", action="store_true")
    made.add_argument("--poll", type=number(0, 60), default=20.0)
    made.add_argument("--from", dest="from_", nargs="+", default=[])
    made.add_argument("--offline", action="store_true")
    made.needs(["poll", "from_"], ["wait"], " (a hint)")
    made.excludes(["wait"], ["offline"])
    return made


@pytest.mark.parametrize("words", [[], ["--wait"], ["--wait", "--poll", "3", "--from", "a"], ["--poll", "20"]])
def test_what_means_something_passes(words: list[str]) -> None:
    parser().parse_args(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--poll", "3"], "--poll belongs to --wait, which is not given (a hint)"),
        (["--from", "a", "--poll", "0"], "--poll and --from belong to --wait, which is not given"),
        (["--wait", "--offline"], "--wait does nothing beside --offline"),
    ],
)
def test_what_does_nothing_is_refused_in_sub_commands_too(words: list[str], told: str) -> None:
    outer = CommandParser()
    inner = outer.add_subparsers().add_parser("go")
    inner.add_argument("--wait", action="store_true")
    inner.add_argument("--offline", action="store_true")
    inner.add_argument("--poll", type=float, default=20.0)
    inner.add_argument("--from", dest="from_", nargs="+", default=[])
    inner.needs(["poll", "from_"], ["wait"], " (a hint)")
    inner.excludes(["wait"], ["offline"])
    for given, line in ((parser(), words), (outer, ["go", *words])):
        with pytest.raises(Exception, match="-") as caught:
            given.parse_args(line)
        assert type(caught.value).__name__ == "InputError" and told in str(caught.value)


@pytest.mark.parametrize(
    ("read", "text", "allowed"),
    [
        (whole_number(1), "0", "'0' is not a whole number from 1 on"),
        (whole_number(1), "1.5", "is not a whole number from 1 on"),
        (whole_number(), "few", "'few' is not a whole number"),
        (whole_number(), "9" * 5000, "is not a whole number"),
        (whole_number(1, 2), "3", "is not a whole number from 1 up to 2"),
        (number(0, 1e7), "nan", "'nan' is not a number from 0 up to 1e+07"),
        (number(), "inf", "is not a number"),
        (number(0), "-1", "is not a number from 0 on"),
        (number(0), "0,5", "'0,5' is not a number from 0 on: write it with a decimal point, as 0.5"),
        (positive_number(), "0", "'0' is not a number above 0"),
        (positive_number(), "nan", "'nan' is not a number above 0"),
        (positive_number(), "0,65", "'0,65' is not a number above 0: write it with a decimal point, as 0.65"),
    ],
)
def test_numbers_are_refused_in_words(read: object, text: str, allowed: str) -> None:
    assert callable(read)
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        read(text)
    assert allowed in str(caught.value) and len(str(caught.value)) < 100


def test_numbers_are_read() -> None:
    assert [whole_number(1)("1"), whole_number()("-3"), number(0, 60)("60"), number()("1e-3")] == [1, -3, 60.0, 0.001]
    assert positive_number()("0.65") == 0.65


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["inti"], "there is no command 'inti': did you mean 'init'?"),
        (["xyz"], "there is no command 'xyz': known are check, init, members, push"),
        (["--manifest", "m.json", "push"], "a command comes first: `python build_kernel.py push`"),
        (["--images", "x"], "--images belongs to --dry-run, which is not given"),
        (["--limit", "1", "--device", "cpu"], "--limit and --device belong to --dry-run"),
        (["--license", "other"], "--license belongs to --weights-dir or --dry-run"),
        (["status", "--wait-timeout", "3"], "--wait-timeout belongs to --wait"),
        (["submit", "--poll", "3"], "--poll belongs to --wait"),
        (["submit", "--ref", "3", "--message", "hi"], "--message does nothing beside --ref"),
        (["push", "--offline", "--no-run"], "--no-run does nothing beside --offline"),
        (["push", "--check", "--timeout", "3"], "--timeout does nothing beside --check"),
        (["init", "--user", "ada", "--dataset", "cells"], "--dataset belongs to --from"),
        (["members", "--out", "x", "remove", "htc"], "--out: of no use to `members remove`"),
        (["members", "--weights-dir", "x", "use", "htc", "--for", "cort"], "--weights-dir: of no use to `members use`"),
    ],
)
def test_build_kernel_refuses_what_does_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert build_kernel.main(words) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dry-run", "--limit", "0"], "argument --limit: '0' is not a whole number from 1 on"),
        (["status", "--version", "x"], "argument --version: 'x' is not a whole number from 1 on"),
        (["--dryrun"], "unrecognized arguments: --dryrun; did you mean '--dry-run'?"),
        (["members", "ad", "file"], "did you mean 'add'?"),
        (["members", "remove", "htc", "--weights-dir", "x"], "unrecognized arguments: --weights-dir x\n"),
    ],
)
def test_build_kernel_tells_usage_in_words(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_kernel.main(words)
    assert told in capsys.readouterr().err
