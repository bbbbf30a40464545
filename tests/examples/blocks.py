"""The code blocks of the README and of the documentation, found in their Markdown.

    ```python      runs by itself, as a script without a `__main__` guard, in an empty folder
    ```text        directly after one: what it prints, compared line by line (`...` alone on a line: anything)
    ```console     its `$ ` lines run, one after the other in one folder, and must succeed; its other lines, where
                   there are any, are what they print

A comment `<!-- not run: reason -->` on the line before a block takes it out; a test counts those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "reference"),
]

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str  # relative to the project
    line: int  # of its first line of code
    language: str
    code: str
    prints: str | None = None  # the `text` block right after it
    not_run: str = ""  # why

    @property
    def name(self) -> str:
        """What a test of it is called."""
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of one page, in order."""
    text = page.read_text()
    matches = list(FENCE.finditer(text))
    found = []
    for match, following in pairwise([*matches, None]):
        assert match is not None
        prints = None
        if following and following[1] == "text" and not text[match.end() : following.start()].strip():
            prints = following[2]
        before = NOT_RUN.search(text[: match.start()].rstrip("\n").rpartition("\n")[2])
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=text.count("\n", 0, match.start(2)) + 1,
                language=match[1],
                code=match[2],
                prints=prints,
                not_run=before[1] if before else "",
            )
        )
    return found


def all_blocks(language: str) -> list[Block]:
    """Every block in that language, of every page."""
    return [block for page in PAGES if page.exists() for block in blocks_of(page) if block.language == language]


def same_output(expected: str, actual: str) -> bool:
    """Whether the output is the expected one; a line `...` stands for any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line) + r" *\n" for line in expected.splitlines()
    )
    return re.fullmatch(pattern, actual if actual.endswith("\n") else actual + "\n") is not None
