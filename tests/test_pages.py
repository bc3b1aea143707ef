"""README.md and docs/: links lead somewhere, paths and options are there, sentences are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, code_blocks, code_words, page_commands, prose, read_page, sentences

from kernel.manifest.reader import parse_manifest, read_manifest

MOST_WORDS = 25
#: Folders that commands write, which are not in a clone.
OUTPUTS = {"dist", "runs", "weights"}
#: torchrun's, Kaggle's client's, and argparse's own.
OTHERS_OPTIONS = {"--nproc-per-node", "--unzip", "--help"}
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """What links may name in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(read_page(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_all_pages_are_looked_at() -> None:
    assert set(PAGES) == {ROOT / "README.md", *(ROOT / "docs").rglob("*.md")}


@pages
def test_readers_find_every_page(page: Path) -> None:
    linked = re.findall(r"\]\(([^)#]+)", read_page(ROOT / "README.md"))
    assert page.name == "README.md" or page.relative_to(ROOT).as_posix() in linked


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", read_page(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: no such heading"


@pages
def test_paths_are_there(page: Path) -> None:
    """What looks like a path of this repository, in pieces of code."""
    tops = {path.name for path in ROOT.iterdir()} - OUTPUTS
    for word in code_words(read_page(page)):
        top, slash, _ = word.partition("/")
        if (slash and top in tops) or re.fullmatch(r"[\w/.-]+\.(py|md|toml)", word):
            found = [ROOT / word, ROOT / "kernel" / word]  # the README calls kernel/main.py by its name
            assert any(path.exists() for path in found), f"{page.name} names {word}, which is not there"


@pages
def test_options_are_there(page: Path) -> None:
    """Options in prose are some command's; those in blocks are tried by `test_readme.py`."""
    folders = (
        ROOT / "kernel" / "commands",
        ROOT / "bundle",
        ROOT / "bundle" / "commands",
        ROOT / "tests" / "benchmarks",
    )
    sources = [
        ROOT / "build_kernel.py",
        ROOT / "tests" / "matrix.py",
        *(path for folder in folders for path in folder.glob("*.py")),
    ]
    known = set(
        re.findall(r'"(--[a-z][a-z0-9-]*)"', "\n".join(source.read_text(encoding="utf-8") for source in sources))
    )
    for word in code_words(read_page(page)):
        if word.startswith("--") and word not in OTHERS_OPTIONS:
            assert word in known, f"{page.name} names {word}, which no command takes"


@pages
def test_targets_of_make_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"`make ([^\s`]+)", prose(read_page(page))):
        assert target in targets, f"{page.name} names make {target}, which is no target"


@pages
def test_sentences_are_short(page: Path) -> None:
    for number, sentence in sentences(read_page(page)):
        count = len(sentence.split())
        assert count <= MOST_WORDS, f"{page.name}, line {number}: {count} words, {MOST_WORDS} at most: {sentence}"


def test_long_sentences_are_found() -> None:
    long = " ".join(["word"] * 26)
    text = f"# T\n\nShort. {long}.\nAnd `a b c` [two words](x.md).\n\n- {long}\n\n| {long} |\n\n```sh\n{long}\n```\n"
    found = [(number, len(sentence.split())) for number, sentence in sentences(text)]
    assert found == [(1, 1), (3, 1), (3, 26), (3, 4), (6, 26)]


def test_sample_cells_are_of_the_type_that_their_card_says() -> None:
    card = (ROOT / "bundle" / "members" / "README.md").read_text(encoding="utf-8")
    prepared = [command for command in page_commands() if " prepare --annotated bundle/members/images " in command]
    told = [found for command in prepared for found in re.findall(r"--cell-type (\w+)", command)]
    assert told and [f"T98G for {each}" in card for each in told] == [True] * len(told)


def test_fixed_usage() -> None:
    commands = page_commands()
    assert commands[:2] == ["make demo", "make test"]
    in_readme = [line for block in code_blocks(read_page(ROOT / "README.md"), "sh") for line in block.splitlines()]
    assert any(line.startswith("python build_kernel.py") for line in in_readme)
    assert any(line.startswith("kaggle kernels push") for line in in_readme)
    assert any("--dry-run" in line for line in in_readme)


def test_member_of_the_readme() -> None:
    (block,) = code_blocks(read_page(ROOT / "README.md"), "json")
    published = (ROOT / "weights_manifest.json").read_text(encoding="utf-8")
    first = re.search(r'"members": \[\n', published)
    assert first
    edited = published[: first.end()] + block.rstrip() + ",\n" + published[first.end() :]
    assert parse_manifest(edited, "README").members[0].name == "cascade_mine"
    assert len(read_manifest(ROOT / "weights_manifest.json").members) == 13


def test_each_fault_of_the_table_has_its_test() -> None:
    told = re.findall(r"`(test_\w+\.py)::(test_\w+)`", read_page(ROOT / "docs" / "faults.md"))
    assert len(told) > 30
    for file, name in told:
        source = (ROOT / "tests" / "faults" / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file}: no {name}"
