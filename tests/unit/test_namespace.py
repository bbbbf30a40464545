"""Drop-in: what the standard library's modules offer is here under the same name, called the same way.

Ours may take more, by keyword alone; it may never take less, in another order, or with another default.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import multiprocessing
import pkgutil
import types
from typing import Any

import pytest

import manycore

MODULES = [
    "pool",
    "queues",
    "connection",
    "synchronize",
    "sharedctypes",
    "shared_memory",
    "managers",
    "context",
    "process",
]


def public(module: types.ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    return sorted(names if names is not None else (name for name in vars(module) if not name.startswith("_")))


def ours_of(name: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(f"manycore.{name}")
    except ModuleNotFoundError:
        return None


def test_each_module_of_the_standard_is_one_of_ours() -> None:
    """But those with the inner workings of its start methods, which nobody imports."""
    for module in pkgutil.iter_modules(multiprocessing.__path__):
        if not module.name.startswith("popen_"):
            importlib.import_module(f"manycore.{module.name}")


def pairs() -> list[tuple[str, Any, Any]]:
    """(what it is called, the standard library's, ours) of all that exists on both sides."""
    found = [
        (name, getattr(multiprocessing, name), getattr(manycore, name))
        for name in multiprocessing.__all__
        if name in manycore._HOMES
    ]
    for module in MODULES:
        standard, ours = importlib.import_module(f"multiprocessing.{module}"), ours_of(module)
        here = [name for name in public(standard) if hasattr(ours, name)] if ours else []
        found += [(f"{module}.{name}", getattr(standard, name), getattr(ours, name)) for name in here]
    if "ProcessPoolExecutor" in manycore._HOMES:
        name = "ProcessPoolExecutor"
        found.append((name, concurrent.futures.ProcessPoolExecutor, getattr(manycore, name)))
    return found


def parameters(value: object) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(value).parameters.values())  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a C function without a signature
        return None


def complaint(standard: object, ours: object) -> str:
    """How ours cannot be called as the standard library's can; empty when it can."""
    theirs, mine = parameters(standard), parameters(ours)
    if theirs is None or mine is None or theirs == mine:
        return ""
    kinds = {parameter.kind for parameter in mine}
    if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds:
        return ""
    by_name = {parameter.name: parameter for parameter in mine}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    place = [parameter.name for parameter in mine if parameter.kind in positional]
    for index, parameter in enumerate(theirs):
        same = by_name.get(parameter.name)
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            if parameter.kind not in kinds:
                return f"does not take {parameter}"
        elif same is None:
            return f"has no parameter {parameter.name!r}"
        elif parameter.kind in positional and (index >= len(place) or place[index] != parameter.name):
            return f"parameter {parameter.name!r} is not number {index + 1}"
        elif parameter.default is not inspect.Parameter.empty and same.default is inspect.Parameter.empty:
            return f"parameter {parameter.name!r} has no default"
        elif parameter.name == "chunksize" and same.default is None:
            continue  # measured, where the standard library's default is a guess
        elif isinstance(parameter.default, (int, float, str, type(None))) and same.default != parameter.default:
            return f"parameter {parameter.name!r} is {same.default!r} by default, not {parameter.default!r}"
    known = {parameter.name for parameter in theirs}
    for parameter in mine:
        if parameter.kind in positional and parameter.name not in known and parameter.default is parameter.empty:
            return f"asks for {parameter.name!r}"
    return ""


@pytest.mark.parametrize(("standard", "ours"), [pytest.param(a, b, id=name) for name, a, b in pairs()])
def test_what_is_here_is_called_the_same_way(standard: Any, ours: Any) -> None:
    if not callable(standard):
        pytest.skip("a constant or a module")
    assert callable(ours)
    assert complaint(standard, ours) == ""
    if not inspect.isclass(standard) or not inspect.isclass(ours):
        return
    for name, method in inspect.getmembers(standard, callable):
        if not name.startswith("_"):
            assert hasattr(ours, name), f"no method {name}"
            assert complaint(method, getattr(ours, name)) == "", name


def test_the_comparison_finds_differences() -> None:
    def standard(a: int, b: int | None = None, *, c: int = 1) -> None: ...
    def more(a: int, b: int | None = None, *, c: int = 1, d: int = 2) -> None: ...
    def less(a: int, *, c: int = 1) -> None: ...
    def swapped(b: int, a: int | None = None, *, c: int = 1) -> None: ...
    def other_default(a: int, b: int = 0, *, c: int = 1) -> None: ...
    def demanding(a: int, b: int | None = None, *, c: int) -> None: ...

    assert complaint(standard, more) == ""
    assert complaint(standard, less) == "has no parameter 'b'"
    assert "not number 1" in complaint(standard, swapped)
    assert "by default" in complaint(standard, other_default)
    assert complaint(standard, demanding) == "parameter 'c' has no default"


@pytest.mark.parametrize("name", ["util", "heap", "reduction", "dummy", "dummy.connection"])
def test_what_is_one_for_both_libraries(name: str) -> None:
    assert importlib.import_module(f"manycore.{name}") is importlib.import_module(f"multiprocessing.{name}")
