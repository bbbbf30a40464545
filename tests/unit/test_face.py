"""The face: every public name has one home, and importing it costs and starts nothing."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import manycore
from tests.unit import face_stub

FOLDER = Path(manycore.__file__).parent


@pytest.mark.parametrize("name", sorted(manycore._HOMES))
def test_a_public_name_resolves_to_the_object_of_its_home(name: str) -> None:
    home = importlib.import_module(f"manycore.{manycore._HOMES[name]}")
    assert getattr(manycore, name) is getattr(home, name)


@pytest.mark.parametrize("module", sorted(set(manycore._HOMES.values())))
def test_a_home_lists_what_the_face_takes_from_it(module: str) -> None:
    home = importlib.import_module(f"manycore.{module}")
    taken = {name for name, where in manycore._HOMES.items() if where == module}
    if hasattr(home, "__all__"):
        assert taken <= set(home.__all__)
        assert all(hasattr(home, name) for name in home.__all__)


def test_a_class_or_function_has_one_home_alone() -> None:
    homes: dict[int, str] = {}
    for name in manycore._HOMES:
        value = getattr(manycore, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert homes.setdefault(id(value), name) == name, f"{name} and {homes[id(value)]} are the same object"


def test_all_is_the_table_but_for_a_builtin_that_means_something_else() -> None:
    assert set(manycore.__all__) == {"__version__", *manycore._HOMES} - {"map"}
    assert {"map", *manycore.__all__} <= set(dir(manycore))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        getattr(manycore, "no_such_" + "name")


def test_without_numpy_all_names_are_there() -> None:
    """Who wants them all (`import *`, an inspector) need not want an array."""
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "import inspect, manycore\n"
        "from manycore import *\n"
        "assert inspect.getmembers(manycore)\n"
        "try: SharedArray((2,), float)\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "SharedArray needs NumPy: pip install numpy\n", done.stderr


def test_the_stub_shows_type_checkers_the_same_names() -> None:
    assert (FOLDER / "__init__.pyi").read_text() == face_stub.text(), "run python -m tests.unit.face_stub"


FREE = {"__future__", "importlib", "importlib._bootstrap", "importlib._bootstrap_external", "warnings"}
PROBE = """
import json, os, sys, threading, signal
signals = {s: signal.getsignal(s) for s in signal.valid_signals()}
before = set(sys.modules)
import manycore
new = sorted(set(sys.modules) - before)
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
fds = len(os.listdir("/proc/self/fd"))
same = all(signal.getsignal(s) == h for s, h in signals.items())
print(json.dumps([new, threading.active_count(), children, fds, same]))
"""


def test_importing_starts_nothing_and_stays_light() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROBE], check=True, capture_output=True, text=True)
    new, threads, children, fds, same_signals = json.loads(done.stdout)
    assert set(new) - FREE == {"manycore"}
    assert threads == 1
    assert children == []
    assert fds <= 4  # 0, 1, 2 and the listing itself
    assert same_signals
