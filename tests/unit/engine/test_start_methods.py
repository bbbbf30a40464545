"""Pools whose workers start by the standard methods: what of the program's `__main__` they have, and how they end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import manycore

PROGRAM = """
import os, sys, threading
import manycore

DATA = [1, 2, 3]
LOCK = threading.Lock()  # cannot be pickled

class Point:
    def __init__(self, x):
        self.x = x

def set_state(value):
    global STATE
    STATE = value

def see(point):
    with LOCK:
        return isinstance(point, Point), Point(point.x + len(DATA)), STATE, os.getppid()

def check(submit):
    here, point, state, parent = submit(see, Point(4))
    assert here and type(point) is Point and point.x == 7 and state == "set"
    assert (parent == os.getpid()) == (METHOD in {"fork", "spawn"}), METHOD
    assert submit(lambda x: x + len(DATA), 4) == 7
    try:
        submit(os._exit, 3)
    except manycore.WorkerDied as error:
        assert error.certificate.exitcode == 3 and "pool" in error.certificate.title
    assert submit(len, DATA) == 3

METHOD = sys.argv[1]
if __name__ == "__main__":
    context = manycore.get_context(METHOD)
    with context.Pool(2, set_state, ("set",)) as pool:
        check(lambda f, *args: pool.apply_async(f, args).get(30))
        assert pool.map(see, [Point(1)])[0][2] == "set"
    with manycore.ProcessPoolExecutor(2, context, set_state, ("set",)) as executor:
        check(lambda f, *args: executor.submit(f, *args).result(30))
    print("done")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_programs_main(method: str, tmp_path: Path) -> None:
    """Its classes are its own, its globals are read where they cannot be pickled, an initializer sets them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, str(program), method]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_the_program_chooses(tmp_path: Path) -> None:
    """`set_start_method` counts for pools that are given no context."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nimport manycore\nmanycore.set_start_method('fork')\n"
        "with manycore.Pool(1) as pool:\n    assert pool.apply(os.getppid) == os.getpid()\n"
        "with manycore.ProcessPoolExecutor(1) as pool:\n    assert pool.submit(os.getppid).result() == os.getpid()\n",
        encoding="utf-8",
    )
    subprocess.run([sys.executable, program], timeout=50, stdin=subprocess.DEVNULL, check=True)


def test_a_context_of_multiprocessing() -> None:
    program = (
        "import os, multiprocessing, manycore\n"
        "with manycore.ProcessPoolExecutor(1, multiprocessing.get_context('fork')) as executor:\n"
        "    assert executor.submit(os.getppid).result(30) == os.getpid()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=50, stdin=subprocess.DEVNULL, check=True)


def test_a_forgotten_guard_is_named(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import manycore\nwith manycore.get_context('spawn').Pool(1) as pool:\n    pool.map(abs, [1])\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL, check=False)
    assert ended.returncode == 1
    assert ended.stderr.count("Traceback") == 1, ended.stderr
    assert 'must stand under `if __name__ == "__main__":`' in ended.stderr


INHERITED = """
import multiprocessing, os, sys, threading
import manycore

lock, local = multiprocessing.RLock(), threading.Lock()

def keep(shared, own):
    assert own is local and not own.locked()
    return shared

def both(_):
    with manycore.current_worker().state as held:
        return held

make = manycore.Pool if sys.argv[1] == "Pool" else manycore.ProcessPoolExecutor
def last(state):
    with state, local:
        print("finalized", flush=True)

options = {"initializer": lambda *given: keep(*given), "initargs": (lock, local)}
options["finalizer"] = lambda state: last(state)
options["context" if make is manycore.Pool else "mp_context"] = manycore.get_context("fork")
with make(2, **options) as pool:
    assert list(pool.map(both, range(4))) == [True] * 4
"""


@pytest.mark.parametrize("face", ["Pool", "ProcessPoolExecutor"])
def test_a_forked_worker_inherits_what_its_initializer_gets(face: str) -> None:
    """As in the standard library: locks of a fork context and of threads, which cannot be pickled."""
    command = [sys.executable, "-c", INHERITED, face]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, stdin=subprocess.DEVNULL, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "finalized\nfinalized\n", "")


class Foreign:
    """A context that starts processes by a method of its own."""

    def get_start_method(self, allow_none: bool = False) -> str:
        assert allow_none
        return "loky"


@pytest.mark.parametrize("make", [manycore.Pool, manycore.ProcessPoolExecutor])
def test_other_contexts_are_refused(make: Any) -> None:
    name = "context" if make is manycore.Pool else "mp_context"
    with pytest.raises(ValueError, match="loky"):
        make(1, **{name: Foreign()})
    with pytest.raises(TypeError, match="a context is wanted"):
        make(1, **{name: "fork"})
