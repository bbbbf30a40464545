"""Too little of something (a budget, memfd, descriptors, /dev/shm, file size): slower and right, or a clear error.

The uses run in a program of their own (`short_script.py`), which fails on a wrong answer, and is killed when it hangs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SEED

SCRIPT = Path(__file__).with_name("short_script.py")
FULL = "MANYCORE_FULL" in os.environ
USES = {"in_shared_memory", "in_named_memory", "with_locks", "in_a_pipe", "in_a_queue", "in_a_pool"}
SHIM = """
#include <errno.h>
int memfd_create(const char *name, unsigned flags) { (void)name; (void)flags; errno = EPERM; return -1; }
"""


def run(*arguments: object, **environment: str) -> dict[str, str]:
    """What each use said: "right", or what was missing. The last of uses that were made more than once."""
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment, "PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    print(done.stdout, done.stderr, sep="\n")
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    if "cannot" in said:
        pytest.skip(said["cannot"])
    return said


def all_right(said: dict[str, str]) -> bool:
    return set(said) == USES and set(said.values()) == {"right"}


def test_a_budget_that_is_reached() -> None:
    assert all_right(run("budget"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_memfd_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "shim.c"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "shim.so")], check=True)
    assert all_right(run("memfd", LD_PRELOAD=str(tmp_path / "shim.so")))


@pytest.mark.timeout(180)
def test_at_the_parent_s_descriptor_limit() -> None:
    counts = range(41) if FULL else sorted({0, 3, 8, SEED % 30, 40})
    said = run("descriptors", *counts)
    assert all_right(said)  # with 40 more there are enough
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("manycore-short-")]


@pytest.mark.timeout(180)
def test_at_a_worker_s_descriptor_limit() -> None:
    said = run("worker", 0)
    assert "Too many open files" in said["ends"]
    assert said["abs"] == "right"
    said = run("worker", *(range(13) if FULL else (1, 2, 12)))
    assert said == {"ends": "right", "grow": "right", "abs": "right"}


@pytest.mark.parametrize("most", [20_000, 1_000_000])
def test_at_the_file_size_limit(most: int) -> None:
    said = run("file_size", most)
    assert set(said) >= USES
    assert said["with_locks"] == said["in_a_pipe"] == "right"
    for use in ("in_shared_memory", "in_named_memory", "in_a_pool"):
        assert "File too large" in said[use]


def test_where_dev_shm_is_tiny() -> None:
    said = run("shm")
    assert "No space left" in said.pop("in_named_memory")
    assert set(said) == USES - {"in_named_memory"}
    assert set(said.values()) == {"right"}
