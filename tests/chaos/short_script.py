"""Uses everything that needs memory or descriptors, where there is too little of something: `short_script.py WHAT`.

Each use gives the right answer, or raises an error that says what is missing. Prints a line a use. Whatever else
happens (a wrong answer, a hang, a crash) is a failure of the test that runs this.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from queue import Empty
from typing import Any

import numpy as np

import manycore

LARGE = 3 << 20


def ends(value: Any) -> tuple[int, int]:
    return len(value), int(value[-1])


def grow(size: int) -> Any:
    return np.full(size, 9, np.uint8)


def is_right(result: Any) -> bool:
    if isinstance(result, np.ndarray):
        return ends(result) == (LARGE, 9)
    return result in {3, (LARGE, 7)}


def limit_here(extra: int) -> int:
    """An initializer's work: this worker may open `extra` descriptors more."""
    set_descriptor_limit(extra)
    return 0


def put_there(queue: Any) -> None:
    queue.put(np.full(LARGE, 5, np.uint8))


def in_a_pool() -> None:
    with manycore.Pool(2) as pool:
        assert pool.map(abs, range(-5, 5)) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        value = np.full(LARGE, 7, np.uint8)
        assert pool.map(ends, [value] * 6) == [(LARGE, 7)] * 6
        for result in pool.map(grow, [LARGE] * 6):
            assert ends(result) == (LARGE, 9)
        assert pool.apply(ends, (b"x" * LARGE,)) == (LARGE, ord("x"))


def in_a_queue() -> None:
    queue = manycore.Queue()
    process = manycore.Process(target=put_there, args=(queue,))
    process.start()
    try:
        assert ends(queue.get(timeout=4)) == (LARGE, 5)
    finally:
        process.join(20)


def in_a_pipe() -> None:
    here, there = manycore.Pipe()
    here.send([1, "two"])
    assert there.recv() == [1, "two"]


def in_shared_memory() -> None:
    shared = manycore.share(np.full(LARGE, 3, np.uint8))
    assert ends(shared.get()) == (LARGE, 3)
    array = manycore.SharedArray(LARGE, np.uint8, values=4, lock=True)
    with array.lock:
        array += 1
    assert ends(array) == (LARGE, 5)


def in_named_memory() -> None:
    memory = manycore.shared_memory.SharedMemory(f"manycore-short-{os.getpid()}", create=True, size=LARGE)
    try:
        memory.buf[:] = b"y" * LARGE  # no SIGBUS: the pages are there
        assert memory.buf[LARGE - 1] == ord("y")
    finally:
        memory.close()
        memory.unlink()


def with_locks() -> None:
    lock, condition, semaphore = manycore.Lock(), manycore.Condition(), manycore.Semaphore(1)
    with lock, condition, semaphore:
        condition.notify_all()


USES: list[Callable[[], None]] = [in_shared_memory, in_named_memory, with_locks, in_a_pipe, in_a_queue, in_a_pool]


def use_everything() -> None:
    for use in USES:
        try:
            use()
        except (OSError, manycore.ManycoreError, MemoryError) as error:
            if not str(error):
                raise
            print(f"{use.__name__}: {type(error).__name__}: {error}", flush=True)
        except Empty:
            print(f"{use.__name__}: nothing came; the sender has said why", flush=True)
        else:
            print(f"{use.__name__}: right", flush=True)


# ---- what is short


def set_descriptor_limit(extra: int) -> None:
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + extra, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


# What is imported later may find no descriptor to be read through.
MODULES = ("_launch.launcher", "_engine.worker", "connection", "pool")
HOMES = [import_module(f"manycore.{name}") for name in MODULES]
FACE = ("Pool", "Queue", "Pipe", "Process", "Lock", "Condition", "Semaphore", "WorkerDied", "share", "SharedArray")
NAMES = [getattr(manycore, name) for name in FACE]


def in_the_parent(*counts: str) -> None:
    """Each number of descriptors in a process of its own."""
    for extra in map(int, counts):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a hang is a failure
            print(f"-- {extra} descriptors", flush=True)
            set_descriptor_limit(extra)
            code = 1
            try:
                use_everything()
                HOMES[0].shutdown()
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            sys.exit(f"{extra} descriptors: ended with {status}")


def in_a_worker(*counts: str) -> None:
    for extra in map(int, counts):
        print(f"-- {extra} descriptors in the worker", flush=True)
        with manycore.Pool(1, limit_here, (extra,)) as pool:
            for task, argument in ((ends, np.full(LARGE, 7, np.uint8)), (grow, LARGE), (abs, -3)):
                try:
                    result = pool.apply_async(task, (argument,)).get(timeout=40)
                except (OSError, manycore.ManycoreError) as error:
                    print(f"{task.__name__}: {type(error).__name__}: {error}", flush=True)
                else:
                    assert is_right(result)
                    print(f"{task.__name__}: right", flush=True)


def without_memfd() -> None:
    """A library that was loaded first refuses it, here and in every process to come."""
    try:
        os.memfd_create("x")
    except PermissionError:
        use_everything()
    else:
        raise AssertionError("memfd is there")


def with_file_size(most: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
    use_everything()


def with_small_budget() -> None:
    """Of the parent's arena and of each worker's: the workers' is in their own hands."""
    import_module("manycore._engine.outbox").default_budget = small_budget  # type: ignore[attr-defined]
    with manycore.Pool(1, use_small_budget) as pool:
        assert pool.apply(ends, (np.full(LARGE, 7, np.uint8),)) == (LARGE, 7)
        assert ends(pool.apply(grow, (LARGE,))) == (LARGE, 9)
    use_everything()


def small_budget(_: int = 1) -> int:
    return 1 << 20


def use_small_budget() -> None:
    import_module("manycore._engine.worker").default_budget = small_budget  # type: ignore[attr-defined]


def with_small_shm() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    private = not libc.unshare(0x10020000) and not libc.mount(b"none", b"/", None, 0x44000, None)
    if not private or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k"):
        print("cannot: no mount namespace here", flush=True)
        return
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 65536
    use_everything()


KINDS: dict[str, Callable[..., None]] = {
    "budget": with_small_budget,
    "descriptors": in_the_parent,
    "file_size": with_file_size,
    "memfd": without_memfd,
    "shm": with_small_shm,
    "worker": in_a_worker,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](*sys.argv[2:])
