"""The pages that people read: README.md and docs/, in the order in which their commands build on each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Commands of a page may need what those of earlier pages have written.
PAGES = tuple(
    ROOT / name
    for name in (
        "README.md",
        "docs/competitors.md",
        "docs/kaggle.md",
        "docs/training.md",
        "docs/biologist.md",
        "docs/machines.md",
        "docs/accuracy.md",
        "docs/measured.md",
        "docs/tried-with.md",
        "docs/faults.md",
        "docs/platforms.md",
        "docs/architecture.md",
    )
)


def read_page(page: Path) -> str:
    """A page's text."""
    return page.read_text(encoding="utf-8")


def code_blocks(text: str, language: str) -> list[str]:
    """The contents of a page's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def page_commands() -> list[str]:
    """The lines of all shell blocks, page by page, without comments."""
    blocks = [block for page in PAGES for block in code_blocks(read_page(page), "sh")]
    lines = [re.sub(r"\s+#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def prose(text: str) -> str:
    """A page's text without blocks of code and comments; each line stays in its place."""

    def empty(part: re.Match[str]) -> str:
        return "\n" * part[0].count("\n")

    return re.sub(r"^```.*?^```|<!--.*?-->", empty, text, flags=re.MULTILINE | re.DOTALL)


def code_words(text: str) -> list[str]:
    """The words of all pieces of code in a page's prose and tables."""
    return [word for piece in re.findall(r"`([^`]+)`", prose(text)) for word in piece.split()]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """The sentences of a page, each with the number of the line that its paragraph or list item begins in.

    Blocks of code, comments and tables are left out. A piece of code counts as one word, a link as its words.
    """
    number, gathered = 1, list[str]()
    for place, line in enumerate([*prose(text).splitlines(), ""], start=1):
        stripped = line.strip()
        begins = re.match(r"([-*]|\d+\.)\s", stripped)
        if gathered and (not stripped or begins or stripped.startswith(("|", "#"))):
            paragraph = re.sub(r"`[^`]*`", "code", " ".join(gathered))
            paragraph = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
            yield from ((number, sentence) for sentence in re.split(r"(?<=[.!?])[*)]*\s+(?=\S)", paragraph))
            gathered = []
        if stripped and not stripped.startswith("|"):
            number = number if gathered else place
            gathered.append(re.sub(r"^([-*]|\d+\.|#+)\s+", "", stripped))
