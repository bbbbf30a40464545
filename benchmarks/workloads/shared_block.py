"""A 64 MB array from one process to another through shared memory: copied in once, read where it lies.

What a pool's arguments and results go through, without the pool. The standard library's way is a SharedMemory an
array. The hand-over itself is a pipe for everybody.
"""

from __future__ import annotations

import os
import pickle
from importlib import import_module
from typing import TYPE_CHECKING, Any

from benchmarks.clock import middle, sample
from benchmarks.spec import Measure, Unsupported, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.spec import Run

    Side = tuple[Callable[[Any], bytes], Callable[[bytes], object], Callable[[], object]]


def through_arena(_module: str) -> Side:
    """manycore's: blocks of an arena, recycled."""
    codec = import_module("manycore._memory.codec")
    arenas = import_module("manycore._memory.arena")
    arena = arenas.Arena(1 << 30)
    views: list[Any] = []

    def send(array: Any) -> bytes:
        buffers: list[Any] = []
        data = codec.dumps(array, buffers=buffers)
        return pickle.dumps(arena.put([data, *buffers]))

    def receive(message: bytes) -> object:
        if not views:
            views.append(arenas.ArenaView(os.dup(arena.fd)))
        first, *rest = [views[0].take(ref) for ref in pickle.loads(message)]
        return codec.loads(memoryview(first), buffers=rest)

    return send, receive, lambda: None


def through_names(module: str) -> Side:
    """The standard library's: a named SharedMemory an array."""
    try:
        shared_memory = import_module(f"{module}.shared_memory")
    except ImportError as error:
        raise Unsupported(str(error)) from error
    import numpy as np

    sent: list[Any] = []
    attached: list[Any] = []

    def send(array: Any) -> bytes:
        memory = shared_memory.SharedMemory(create=True, size=array.nbytes)
        sent.append(memory)
        np.ndarray(array.shape, array.dtype, buffer=memory.buf)[...] = array
        return pickle.dumps((memory.name, array.shape, array.dtype))

    def receive(message: bytes) -> object:
        name, shape, dtype = pickle.loads(message)
        attached[:] = [shared_memory.SharedMemory(name)]  # the one before is closed by this
        return np.ndarray(shape, dtype, buffer=attached[0].buf)

    def done() -> None:
        memory = sent.pop()
        memory.close()
        memory.unlink()

    return send, receive, done


def serve(receive: Callable[[bytes], Any], requests: int, answers: int) -> None:
    """The other process: receives, reads a byte of each page, and says so."""
    while length := os.read(requests, 4):
        array = receive(os.read(requests, int.from_bytes(length, "little")))
        total = array[::512].sum()
        del array
        os.write(answers, b"\0" if total > 0 else b"\1")


def run(run: Run) -> dict[str, float]:
    import numpy as np

    array = np.ones(run.size(8 << 20, 16 << 10))
    side = through_arena if run.peer.module == "manycore" else through_names
    send, receive, done = side(run.peer.module)
    requests, answers = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(requests[1])
        try:
            serve(receive, requests[0], answers[1])
        finally:
            os._exit(0)
    for end in (requests[0], answers[1]):
        os.close(end)

    def cross() -> None:
        message = send(array)
        os.write(requests[1], len(message).to_bytes(4, "little") + message)
        if os.read(answers[0], 1) != b"\0":
            raise AssertionError("the array changed on its way")
        done()

    for _ in range(3):
        cross()
    seconds = middle(sample(cross, seconds=run.seconds(1.0), least=5))
    target = np.empty_like(array)
    np.copyto(target, array)
    copy = middle(sample(lambda: np.copyto(target, array), seconds=run.seconds(0.5), least=5))
    for end in (requests[1], answers[0]):
        os.close(end)
    os.waitpid(child, 0)
    return {"rate": array.nbytes / seconds / 1e9, "of_copy": copy / seconds}


WORKLOAD = Workload(
    "shared_block",
    "primitive",
    (
        Measure("rate", "64 MB array to another process through shared memory", "GB/s", "higher"),
        Measure("of_copy", "the same, as a share of one memcpy", "of memcpy", "higher", goal=0.7),
    ),
    run,
)
