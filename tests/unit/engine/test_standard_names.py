"""What programs import from the standard library's modules of pools is under the same names here."""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
import time
from importlib import import_module
from types import ModuleType

import pytest

import manycore

# of multiprocessing.pool's own names: what is private to how its pool works
PRIVATE = {"PoolCacheClass", "CacheResult"}


def own_names(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and (getattr(value, "__module__", module.__name__) == module.__name__)
    }


def test_those_of_multiprocessing_pool() -> None:
    ours = import_module("manycore.pool")
    missing = {name for name in own_names(multiprocessing.pool) if not hasattr(ours, name)} - PRIVATE
    assert missing == set()
    assert issubclass(ours.TimeoutError, multiprocessing.TimeoutError)
    assert ours.MaybeEncodingError is manycore.ResultPicklingError


def test_those_of_concurrent_futures() -> None:
    ours = import_module("manycore.futures")
    missing = {name for name in concurrent.futures.__all__ if not hasattr(ours, name)}
    assert missing <= {"InterpreterPoolExecutor"}


def test_what_a_pool_raises_is_caught_by_these_names() -> None:
    names = import_module("manycore.pool")
    with manycore.Pool(1) as pool:
        with pytest.raises(names.MaybeEncodingError):
            pool.apply(make_unpicklable)
        with pytest.raises(names.TimeoutError):
            pool.apply_async(time.sleep, (60,)).get(0)


def make_unpicklable() -> object:
    import threading

    return threading.Lock()
