"""Contexts: the standard library's own executor and pool run on them, and so do by-reference picklers."""

from __future__ import annotations

import concurrent.futures
import multiprocessing.pool
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, assert_type

import pytest

import manycore
from manycore import queues, synchronize

METHODS = ["zygote", "fork", "spawn", "forkserver"]


@pytest.fixture(scope="module", autouse=True)
def no_standard_helpers_left() -> Iterator[None]:
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def square(value: int) -> int:
    return value * value


def start_method() -> str:
    return str(manycore.get_start_method())


@pytest.mark.parametrize("method", METHODS)
def test_the_standard_executor_runs_on_our_contexts(method: str) -> None:
    context: Any = manycore.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(square, range(5))) == [0, 1, 4, 9, 16]


def test_the_standard_pool_runs_on_our_context() -> None:
    context: Any = manycore.get_context()
    with multiprocessing.pool.Pool(2, context=context) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]


@pytest.mark.parametrize("method", METHODS)
def test_a_start_method_is_told_to_the_child(method: str) -> None:
    process = manycore.get_context(method).Process(target=start_method, result=True)
    process.start()
    assert process.result(30) == method


def test_names_and_errors() -> None:
    assert manycore.get_all_start_methods()[0] == "zygote"
    assert set(manycore.get_all_start_methods()) == set(METHODS)
    assert manycore.get_start_method() == "zygote"
    with pytest.raises(ValueError, match="cannot find context for 'none'"):
        manycore.get_context("none")
    with pytest.raises(ValueError, match="concrete context"):
        manycore.get_context("fork").set_start_method("spawn")


GUARDED = """
import concurrent.futures, sys
import manycore
from manycore import queues, synchronize

def square(value):
    return value * value

if __name__ == "__main__":
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=manycore.get_context()) as executor:
        print(list(executor.map(square, range(3))))
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_functions_of_main_that_are_pickled_by_reference(as_module: bool, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(GUARDED, encoding="utf-8")
    what = ["-m", "program"] if as_module else ["program.py"]
    done = subprocess.run(
        [sys.executable, *what], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[0, 1, 4]\n", done.stderr


WITHOUT_A_FILE = """
import concurrent.futures, multiprocessing.pool, sys
import manycore
from manycore import queues, synchronize

class Pair:
    def __init__(self, value):
        self.value = value

factor = 2

def double(value):
    return Pair(factor * value)

if __name__ == "__main__":
    context = manycore.get_context(METHOD)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        pairs = list(executor.map(double, range(3)))
    with multiprocessing.pool.Pool(2, context=context) as pool:
        pairs += pool.map(double, range(3))
    print([pair.value for pair in pairs], {type(pair) is Pair for pair in pairs})
"""


@pytest.mark.parametrize("how", ["a file", "-c", "standard input"])
@pytest.mark.parametrize("method", METHODS)
def test_the_standard_pools_and_a_program_from_anywhere(method: str, how: str, tmp_path: Path) -> None:
    if how != "a file" and method in {"spawn", "forkserver"}:
        pytest.skip("the standard meaning: the child has no such function")
    text = WITHOUT_A_FILE.replace("METHOD", repr(method))
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    what = {"a file": ["program.py"], "-c": ["-c", text], "standard input": []}[how]
    done = subprocess.run(
        [sys.executable, *what],
        input=text if how == "standard input" else "",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "[0, 2, 4, 0, 2, 4] {True}\n", done.stderr


CLASSES_OF_MAIN = """
import manycore
from manycore import queues, synchronize

class Pair:
    pass

def put(queue):
    queue.put(Pair())

if __name__ == "__main__":
    context = manycore.get_context(METHOD)
    queue = context.Queue()
    first = context.Process(target=put, args=(queue,))
    first.start()
    print(type(queue.get(timeout=30)) is Pair)
    first.join()
    second = context.Process(target=Pair, result=True)
    second.start()
    print(type(second.result(30)) is Pair)
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_class_of_main_is_one_class(method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CLASSES_OF_MAIN.replace("METHOD", repr(method)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True\nTrue\n", done.stderr


def test_an_unguarded_program_that_needs_the_guard_ends(tmp_path: Path) -> None:
    text = GUARDED.replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "__name__ == " in done.stderr


def test_editors_know_what_the_functions_of_the_face_return() -> None:
    assert_type(manycore.Queue(), queues.Queue)
    assert_type(manycore.Lock(), synchronize.Lock)
    assert_type(manycore.Event(), synchronize.Event)
    assert_type(manycore.get_context("fork").JoinableQueue(), queues.JoinableQueue)
