"""The first zygote, which is executed before the launcher that it is for is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

# What takes long to import, and which a zygote need not wait for.
LATE = ("concurrent.futures", "enum", "logging", "multiprocessing", "pickle", "re", "threading", "typing")

FEW = """
import os, sys

spawn, seen = os.posix_spawn, []

def look(*arguments, **options):
    seen.append(sorted(set(sys.argv[1:]) & set(sys.modules)))
    return spawn(*arguments, **options)

os.posix_spawn = look
import manycore

if __name__ == "__main__":
    with manycore.Pool(1) as pool:
        assert pool.apply(len, ["abc"]) == 3
    print(seen)
"""

FORK = """
import os
from manycore._launch import first

def links():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return found

before = links()
first.begin()
first.begin()
_, zygote = first._found
mine = [link for link in links() if link not in before]
if (pid := os.fork()) == 0:
    import manycore
    left = [link for link in links() if link in mine]
    assert len(left) == 1, left  # by which it reaches the keeper
    assert manycore.Pool(1).apply(os.getppid) != zygote.pid
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
import manycore
with manycore.Pool(1) as pool:
    assert pool.apply(os.getppid) == zygote.pid
assert first._found is None
print("ok")
"""

REFUSED = """
import os, resource
from manycore import _launch
from manycore._launch import first

limits = resource.getrlimit(resource.RLIMIT_NOFILE)
for room in range(30):
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used, 20) + room, limits[1]))
    first.begin()
    if first._found is not None:
        break
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) - 1 == used  # what was opened is closed
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
_launch.ensure_started()
assert _launch.launch("operator:is_", b"").wait_started(30)
print("ok", room > 3)
"""

KILLED = """
import os, signal
from manycore._launch import first

first.begin()
os.kill(first._found[1].pid, signal.SIGKILL)
import manycore
with manycore.Pool(1) as pool:
    print("ok", pool.apply(len, ["abc"]) == 3)
"""

THREADS = """
import os, threading
import manycore

pids, spawn, all_there = [], os.posix_spawn, threading.Barrier(4)

def note(*arguments, **options):
    pids.append(spawn(*arguments, **options))
    return pids[-1]

os.posix_spawn = note

def use():
    all_there.wait()
    with manycore.Pool(1) as pool:
        assert pool.apply(os.getppid) == pids[0]

threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("ok", len(pids))
"""


def printed(program: str, *arguments: str) -> str:
    command = [sys.executable, "-I", "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_it_is_executed_before_much_is_imported() -> None:
    assert printed(FEW, *LATE) == "[[]]"


@pytest.mark.parametrize(
    ("program", "expected"), [(FORK, "ok"), (REFUSED, "ok True"), (KILLED, "ok True"), (THREADS, "ok 1")]
)
def test_who_has_it(program: str, expected: str) -> None:
    assert printed(program) == expected
