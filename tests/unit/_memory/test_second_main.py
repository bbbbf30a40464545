"""A script that runs as `__main__` for a time, as `runpy` and a notebook's `%run` have it: its names stay its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INNER = """
import manycore

def helper(n):
    return "script", n

def call(n):
    return helper(n)

class Item:
    def run(self, n):
        return helper(n)

assert manycore.map(call, [1], workers=1) == [("script", 1)]
"""

OUTER = """
import runpy
import manycore

def helper(n):
    return "program", n

def call(n):
    return helper(n)

class Item:
    def run(self, n):
        return helper(n)

def script():
    return runpy.run_path("inner.py", run_name="__main__")

def check(pool, names):
    for _ in range(2):  # what is pickled anew, and what is remembered
        assert pool.map(call, [1]) == [("program", 1)]
        assert pool.map(names["call"], [2]) == [("script", 2)]
        assert pool.apply(Item().run, (3,)) == ("program", 3)
        assert pool.apply(names["Item"]().run, (4,)) == ("script", 4)

with manycore.Pool(1) as pool:
    if BEFORE:
        assert pool.map(call, [1]) == [("program", 1)]
    names = script()
    check(pool, names)
    check(pool, script())
    check(pool, names)
with manycore.Pool(1) as pool:
    check(pool, names)
print("done")
"""


def run(folder: Path, *, before: bool) -> None:
    (folder / "inner.py").write_text(INNER)
    (folder / "outer.py").write_text(OUTER.replace("BEFORE", str(before)))
    done = subprocess.run([sys.executable, "outer.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_after_the_program_used_its_own_names(tmp_path: Path) -> None:
    run(tmp_path, before=True)


def test_before_the_program_used_its_own_names(tmp_path: Path) -> None:
    run(tmp_path, before=False)
