"""What the reference shows has something to show: it is written from the table of names (docs/conf.py)."""

from __future__ import annotations

import inspect

import pytest

import manycore


@pytest.mark.parametrize("name", sorted(manycore._HOMES))
def test_a_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(manycore, name)
    if not str(getattr(value, "__module__", "")).startswith("manycore"):
        return  # the standard library's own
    if inspect.isclass(value):
        assert value.__doc__, f"manycore.{name} has no docstring"
    elif inspect.isroutine(value):
        assert inspect.getdoc(value), f"manycore.{name} has no docstring"
