"""What the prose refers to is there: pages, headings, files, each module in its folder's table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import manycore
from tests.examples.blocks import ROOT

FOLDERS = ("benchmarks", "changelog.d", "docs", "src", "tests")
PROSE = [
    *ROOT.glob("*.md"),
    *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md") if page.parent.name != "reference"),
]
MARKER = re.compile(r"^(<<<<<<<|=======|>>>>>>>|\|\|\|\|\|\|\|)( |$)", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
FILE = re.compile(r"`([\w/.-]*\w\.(?:py|pyx|pxi|pyi|h|c|md|toml))`")
IN_SOURCES = (ROOT / "src" / "manycore" / "__init__.py").exists()  # else beside an installed package, as in CI


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", page.read_text())


def headings(page: Path) -> set[str]:
    """What a link can point to, as GitHub and MyST have it."""
    lines = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_no_merge_was_left_half_done() -> None:
    assert [page for page in PROSE if MARKER.search(page.read_text())] == []


def test_links_lead_somewhere() -> None:
    dead = []
    for page in PROSE:
        for target, heading in LINK.findall(text_of(page)):
            aim = (page.parent / target) if target else page
            if aim.exists():
                dead += [(page, f"{target}#{heading}")] if heading and heading not in headings(aim) else []
            elif IN_SOURCES:
                dead.append((page, target))
    assert dead == []


@pytest.mark.skipif(not IN_SOURCES, reason="the sources are not here")
def test_files_that_are_named_exist() -> None:
    there = [*ROOT.glob("*.*"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
    paths = "\n".join(map(str, there)) + "\n"
    missing = {(page, name) for page in PROSE for name in FILE.findall(text_of(page)) if f"/{name}\n" not in paths}
    assert missing == set()


@pytest.mark.parametrize("folder", ["_engine", "_launch", "_memory"])
def test_a_folder_s_table_has_all_its_modules(folder: str) -> None:
    text = (ROOT / "src" / "manycore" / folder / "README.md").read_text()
    modules = {path.name for path in (Path(manycore.__file__).parent / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"| `{name}`" not in text and f", `{name}`" not in text} == set()


@pytest.mark.skipif(not IN_SOURCES, reason="the sources are not here")
def test_the_native_tables_have_all_headers_and_fault_points() -> None:
    folder = ROOT / "src" / "manycore" / "_native"
    text = (folder / "README.md").read_text()
    headers = {path.name for path in (folder / "c").glob("*.h")}
    assert {name for name in headers if f"`{name}`" not in text} == set()
    sources = "".join(path.read_text() for path in [*(folder / "c").glob("*.h"), *folder.glob("*.p[yx][xi]")])
    points = set(re.findall(r'MC_FAULT\w*\("([^"]+)"', sources))
    assert points
    assert {point for point in points if f"`{point}`" not in text} == set()
