"""A wall clock that jumps by an hour changes no timeout: a shim under the program answers for CLOCK_REALTIME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CC = shutil.which(os.environ.get("CC", "cc"))

# After `jump(1)` every question for the wall clock is answered an hour off, until `jump(0)`.
SHIM = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile int off;
void jump(int on) { off = on; }
int clock_gettime(clockid_t clock, struct timespec *t) {
    int result = (int)syscall(SYS_clock_gettime, clock, t);
    if (clock == CLOCK_REALTIME && off) t->tv_sec += atol(getenv("JUMP_S"));
    return result;
}
"""

PROGRAM = """
import time
from manycore.synchronize import Barrier, Condition, Event, Lock, RLock, Semaphore, BrokenBarrierError
from manycore.sharedctypes import Atomic
import ctypes, threading

jump, wall = ctypes.CDLL(None).jump, time.time()
jump(1)
assert abs(time.time() - wall) > 1800, "the clock does not jump"
done = threading.Event()


def jump_about():
    away = 0
    while not done.wait(0.02):
        jump(away)
        away = 1 - away


jumping = threading.Thread(target=jump_about)
jumping.start()
lock, rlock, sem, event, condition, atomic = Lock(), RLock(), Semaphore(0), Event(), Condition(), Atomic(0)
lock.acquire()
threading.Thread(target=rlock.acquire).start()


def barrier(timeout):
    try:
        Barrier(2).wait(timeout)
    except BrokenBarrierError:
        return False


condition.acquire()
for wait in (
    lambda t: lock.acquire(timeout=t), lambda t: rlock.acquire(timeout=t), lambda t: sem.acquire(timeout=t), event.wait,
    condition.wait, lambda t: atomic.wait(0, t), barrier,
):
    before = time.monotonic()
    assert not wait(0.2)
    assert 0.19 <= time.monotonic() - before < 5, time.monotonic() - before
done.set()
jumping.join()
print("kept")
"""


@pytest.mark.skipif(CC is None, reason="no C compiler")
@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_jump_of_the_wall_clock_changes_no_timeout(jump: int, tmp_path: Path) -> None:
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run([str(CC), "-shared", "-fPIC", "-O1", str(source), "-o", str(shim)], check=True)
    env = {**os.environ, "LD_PRELOAD": str(shim), "JUMP_S": str(jump)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "kept\n", done.stderr
