"""A wall clock that jumps by an hour changes no timeout: a shim under the program answers for CLOCK_REALTIME."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CC = shutil.which(os.environ.get("CC", "cc"))

# From 0.1 s after its start on, every question for the wall clock is answered an hour off.
SHIM = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static long begun;
int clock_gettime(clockid_t clock, struct timespec *t) {
    struct timespec now;
    int result = (int)syscall(SYS_clock_gettime, clock, t);
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long ms = now.tv_sec * 1000 + now.tv_nsec / 1000000;
    if (begun == 0) begun = ms;
    if (clock == CLOCK_REALTIME && ms - begun > 100) t->tv_sec += atol(getenv("JUMP_S"));
    return result;
}
"""

PROGRAM = """
import time
from manycore.synchronize import Barrier, Condition, Event, Lock, RLock, Semaphore, BrokenBarrierError
from manycore.sharedctypes import Atomic
import os, threading

wall, begun = time.time(), time.monotonic()
while abs(time.time() - wall) < 1800:  # until the clock has jumped, which shows that the shim works
    assert time.monotonic() - begun < 10, "the clock does not jump"
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
