"""What a worker imports: every worker pays for it, in time and in memory. Counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "logging",
    "multiprocessing",
    "numpy",
    "psutil",
    "rich",
    "subprocess",
}

PROGRAM = """
import json, sys
import manycore

def modules(_):
    import sys
    return sorted(sys.modules)

bare = set(json.loads(sys.argv[1]))
with manycore.Pool(1) as pool:
    print(json.dumps(sorted(set(pool.map(modules, [0])[0]) - bare)))
"""


def printed(*command: str) -> list[str]:
    done = subprocess.run([sys.executable, "-I", "-c", *command], check=True, capture_output=True, text=True)
    names: list[str] = json.loads(done.stdout)
    return names


def test_a_worker_imports_little() -> None:
    bare = printed("import json, sys; print(json.dumps(sorted(sys.modules)))")
    imported = printed(PROGRAM, json.dumps(bare))
    assert HEAVY & set(imported) == set()
    assert len(imported) <= 76, imported  # thirty of them are small ones of our own


LATE = {"asyncio", "concurrent.futures.process", "multiprocessing", "numpy", "psutil", "rich", "subprocess", "tempfile"}


def test_a_first_result_needs_few_imports() -> None:
    program = """
import json, sys
import manycore
import manycore._engine.collecting

manycore._engine.collecting.SETTLED_NS = 1 << 60  # what is imported once a pool has settled is not counted
with manycore.Pool(1) as pool:
    pool.apply(len, [()])
    print(json.dumps(sorted(sys.modules)))
"""
    assert LATE & set(printed(program)) == set()


def test_workers_are_asked_for_before_what_only_results_need_is_imported() -> None:
    program = """
import json, sys
import manycore
from manycore._launch.parent import Launcher

launch, there = Launcher.launch, []

def note(self, *arguments):
    there.extend(sys.modules)
    return launch(self, *arguments)

Launcher.launch = note
with manycore.Pool(1) as pool:
    print(json.dumps(sorted(there)))
"""
    assert {*LATE, "concurrent.futures", "logging", "manycore._engine.mapping", "random"} & set(
        printed(program)
    ) == set()


def test_the_states_of_futures_are_those_of_the_standard_library() -> None:
    program = """
import json
from concurrent.futures import _base
import manycore

gate = manycore.Event()
with manycore.ProcessPoolExecutor(1) as executor:
    executor.submit(gate.wait)
    future = executor.submit(len, "abc")
    before = future._state is _base.PENDING
    gate.set()
    print(json.dumps([before, future.result() == 3, future._state is _base.FINISHED]))
"""
    assert all(printed(program))


def test_errors_are_whole_all_the_same() -> None:
    program = """
import json, pickle, sys
from manycore import errors

assert "concurrent.futures" not in sys.modules and "multiprocessing" not in sys.modules
assert isinstance(pickle.loads(pickle.dumps(errors.WorkerDied("it died"))), errors.ManycoreError)
from concurrent.futures.process import BrokenProcessPool
assert issubclass(errors.WorkerDied, BrokenProcessPool)
print(json.dumps([vars(errors)[name].__module__ for name in errors.__all__ if name.endswith("Died")]))
"""
    assert set(printed(program)) == {"manycore.errors"}


def test_errors_are_whole_when_the_interpreter_ends() -> None:
    program = """
import json, threading
from manycore import errors

def late():
    print(json.dumps([errors.WorkerDied.__name__, errors.TimeoutError.__name__]))

threading._register_atexit(late)
"""
    assert printed(program) == ["WorkerDied", "TimeoutError"]


def test_a_child_imports_nothing_that_starts_processes() -> None:
    program = """
import json
import manycore

def work(connection):
    import sys
    connection.send(sorted(sys.modules))

ours, theirs = manycore.Pipe()
process = manycore.Process(target=work, args=(theirs,), result=True)
process.start()
print(json.dumps(ours.recv()))
process.result()
"""
    assert {"manycore._launch.popen", "manycore._launch.parent", "runpy"} & set(printed(program)) == set()
