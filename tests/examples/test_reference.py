"""The reference has every public name, and what it shows has a docstring."""

from __future__ import annotations

import inspect
import re

import pytest

import manycore
from tests.examples.blocks import ROOT

PAGES = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
MODULES = set(re.findall(r"automodule:: (manycore[\w.]*)", PAGES))
NAMES = set(re.findall(r"auto(?:class|function|data|exception|attribute):: manycore\.(\w+)", PAGES))


@pytest.mark.parametrize("name", sorted(manycore._HOMES))
def test_a_public_name_is_in_the_reference(name: str) -> None:
    assert name in NAMES or f"manycore.{manycore._HOMES[name]}" in MODULES


@pytest.mark.parametrize("name", sorted(manycore._HOMES))
def test_a_public_name_has_a_docstring(name: str) -> None:
    value = getattr(manycore, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value)
