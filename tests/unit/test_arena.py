"""The arena: what is put is taken once, comes back, is recycled, and stays within its budget."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from manycore._memory import arena as arena_module
from manycore._memory.arena import Arena, ArenaFull, ArenaView, Block, default_budget
from manycore._native import arena as native
from manycore._native.mapping import Mapping

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(256 * MIB)
    yield made
    assert made._valid() is None


@pytest.fixture
def view(arena: Arena) -> ArenaView:
    return ArenaView(os.dup(arena.fd), owner=77)


def in_child(work: Callable[[], object]) -> int:
    """The exit code (or minus the signal) of a forked child that runs `work`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, MIB, 16 * MIB - 64, 16 * MIB - 63, 33 * MIB]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_taken(arena: Arena, view: ArenaView, size: int) -> None:
    data = random.Random(size).randbytes(size)
    for _ in range(3):  # cold, then warm
        (ref,) = arena.put([data])
        block = view.take(ref)
        assert len(block) == size
        assert bytes(block) == data
        assert not block.readonly
        assert block.ref == ref
        del block
        assert arena.stats().blocks == 0


def test_blocks_do_not_overlap(arena: Arena, view: ArenaView) -> None:
    random_ = random.Random(5)
    taken: list[tuple[Block, bytes]] = []
    for _ in range(400):
        data = random_.randbytes(random_.choice([3, 600, 5000, 70_000, 300_000]))
        taken.append((view.take(arena.put([data])[0]), data))
        if len(taken) > 60:
            taken.pop(random_.randrange(len(taken)))
        assert arena._valid() is None
    for block, data in taken:
        assert bytes(block) == data


def test_a_buffer_is_writable_and_aligned_and_lives_by_its_views(arena: Arena, view: ArenaView) -> None:
    np = pytest.importorskip("numpy")
    (ref,) = arena.put([np.arange(1000)])
    array = np.frombuffer(view.take(ref), dtype=np.int64)
    assert array.ctypes.data % 64 == 0
    part = array[10:20]
    del array
    gc.collect()
    part += 1
    assert list(part) == list(range(11, 21))
    assert arena.stats().blocks == 1
    del part
    assert arena.stats().blocks == 0


def test_fortran_order_is_copied_as_it_lies(arena: Arena, view: ArenaView) -> None:
    np = pytest.importorskip("numpy")
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    (ref,) = arena.put([array])
    assert bytes(view.take(ref)) == array.T.tobytes()
    with pytest.raises((BufferError, ValueError)):
        arena.put([np.arange(10)[::2]])


def test_a_ref_is_good_for_one_taking(arena: Arena, view: ArenaView) -> None:
    (ref,) = arena.put([b"once"])
    block = view.take(ref)
    for _ in range(2):
        with pytest.raises(OSError, match="taken or released"):
            view.take(ref)
        del block
        block = view.take(arena.put([b"another in its place"])[0])
    del block
    with pytest.raises(OSError, match="taken or released"):
        view.take((1 << 63, 4))
    with pytest.raises(OSError, match="taken or released"):
        view.take((12345, 4))


def test_release_and_resend(arena: Arena, view: ArenaView) -> None:
    (ref,) = arena.put([b"unwanted"])
    assert arena.release(ref)
    assert not arena.release(ref)
    (ref,) = arena.put([b"retry"])
    block = view.take(ref)
    assert not arena.release(ref)
    assert not arena.resend(ref, 78)
    assert arena.resend(ref, 77)
    again = view.take(ref)
    assert bytes(again) == b"retry"
    del block, again
    assert arena.stats().blocks == 0


def test_a_lasting_block_is_for_many(arena: Arena, view: ArenaView) -> None:
    (ref,) = arena.put([b"function"], lasting=True)
    with pytest.raises(OSError, match="taken"):
        view.take(ref)
    one, two = view.look(ref), arena.look(ref)
    assert bytes(one) == bytes(two) == b"function"
    assert one.readonly
    assert memoryview(one).readonly
    del one, two
    assert arena.stats().blocks == 1
    assert arena.release(ref)
    with pytest.raises(OSError, match="released"):
        view.look(ref)


def test_reserve_fills_in_place(arena: Arena, view: ArenaView) -> None:
    for size in (100, 100_000, 20 * MIB):
        block = arena.reserve(size)
        memoryview(block)[:4] = b"made"
        ref = block.send(4)
        with pytest.raises(ValueError, match="not this process's"):
            block.send()
        assert bytes(view.take(ref)) == b"made"
        del block
    block = arena.reserve(100)
    with pytest.raises(ValueError, match="101 bytes"):
        block.send(101)
    del block
    assert arena.stats().blocks == 0
    with pytest.raises(TypeError):
        Block()


def test_the_budget_binds_and_nothing_is_stored_when_it_does(arena: Arena, view: ArenaView) -> None:
    big = bytes(90 * MIB)
    refs = arena.put([big, big])
    with pytest.raises(ArenaFull, match="budget"):
        arena.put([b"small", big])
    assert arena.stats().blocks == 2
    assert arena._valid() is None
    for ref in refs:
        assert arena.release(ref)
    (ref,) = arena.put([bytes(200 * MIB)])  # the idle pages of the others make room
    assert len(view.take(ref)) == 200 * MIB
    with pytest.raises(ArenaFull):
        arena.put([bytes(257 * MIB)])


def test_small_blocks_reach_the_budget_too(view: ArenaView) -> None:
    arena = Arena(4 * MIB)
    refs = []
    with pytest.raises(ArenaFull):
        while True:
            refs += arena.put([bytes(5000)])
    assert arena.stats().resident_bytes <= 4 * MIB
    assert len(refs) > 400
    for ref in refs:
        arena.release(ref)
    arena.put([bytes(3 * MIB)])
    assert arena._valid() is None


def test_memory_comes_back(view: ArenaView) -> None:
    arena = Arena(1024 * MIB, reserve_bytes=64 * MIB)
    view = ArenaView(os.dup(arena.fd))
    random_ = random.Random(1)
    data = bytes(64 * MIB)
    live: list[Block] = []
    for _ in range(300):
        live.append(view.take(arena.put([memoryview(data)[: random_.randrange(64 * MIB)]])[0]))
        if len(live) > 3:
            live.pop(random_.randrange(4))
    stats = arena.stats()
    assert stats.idle_bytes <= 64 * MIB
    live.clear()
    arena.trim()
    stats = arena.stats()
    assert (stats.blocks, stats.resident_bytes) == (0, 0)
    assert os.fstat(arena.fd).st_blocks * 512 <= 64 << 10


def test_a_dead_owner_s_blocks_are_recycled(arena: Arena) -> None:
    refs = arena.put([b"a" * 100, b"b" * 100_000, bytes(20 * MIB), b"not taken"])

    def take_and_die() -> None:
        view = ArenaView(os.dup(arena.fd))
        held = [view.take(ref) for ref in refs[:3]]
        assert held
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        take_and_die()
    os.waitpid(pid, 0)
    assert arena.stats().blocks == 4
    assert arena.reclaim_dead(pid) == 3
    assert arena.reclaim_dead(pid) == 0
    assert arena.stats().blocks == 1
    assert bytes(ArenaView(os.dup(arena.fd)).take(refs[3])) == b"not taken"


def test_a_forked_child_neither_puts_nor_gives_back(arena: Arena, view: ArenaView) -> None:
    block = view.take(arena.put([b"mine"])[0])

    def child() -> None:
        nonlocal block
        assert bytes(block) == b"mine"
        with pytest.raises(ValueError, match="forked child"):
            arena.put([b"x"])
        del block
        gc.collect()

    assert in_child(child) == 0
    assert arena.stats().blocks == 1
    assert bytes(block) == b"mine"


def test_what_was_held_at_a_fork_is_not_recycled_before_the_child_ends(arena: Arena, view: ArenaView) -> None:
    block = view.take(arena.put([b"x" * 1000])[0])
    go, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go[0], 1)
        os._exit(0 if bytes(block) == b"x" * 1000 else 1)
    del block
    for _ in range(50):  # would land on the same bytes
        view.take(arena.put([b"y" * 1000])[0])
    assert native.pinned_blocks() == 1
    os.write(go[1], b"g")
    assert os.waitpid(pid, 0)[1] == 0
    arena.trim()
    assert native.pinned_blocks() == 0
    assert arena.stats().blocks == 0
    assert not arena_module._forks
    for end in (*go, *done):
        os.close(end)


def test_threads_put_and_drop_at_once(arena: Arena, view: ArenaView) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        random_ = random.Random(number)
        for _ in range(200):
            data = bytes([number]) * random_.choice([10, 10_000, 100_000, 2 * MIB])
            if bytes(view.take(arena.put([data])[0])) != data:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena.stats().blocks == 0


def test_views_outlive_the_arena() -> None:
    arena = Arena(MIB)
    view = ArenaView(os.dup(arena.fd))
    (ref, other) = arena.put([b"still here", b"later"])
    block = view.take(ref)
    del arena
    assert bytes(block) == b"still here"
    assert bytes(view.take(other)) == b"later"
    del view
    gc.collect()
    assert bytes(block) == b"still here"


def test_what_is_no_arena_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, MIB)
    with pytest.raises(OSError, match="is not an arena"):
        ArenaView(fd)
    os.close(fd)
    with pytest.raises(ValueError, match="at least 1 MiB"):
        Arena(1000)


def test_overwritten_books_stop_the_arena_and_corrupt_nothing(arena: Arena, view: ArenaView) -> None:
    block = view.take(arena.put([b"x" * 100])[0])
    stack = memoryview(native_mapping(arena.fd))[64:72].cast("Q")
    stack[0] = 987654321
    with pytest.raises(ArenaFull, match="overwritten"):
        arena.put([b"more"])
    assert bytes(block) == b"x" * 100


def native_mapping(fd: int) -> Mapping:
    return Mapping(fd, 4096)


def test_no_descriptor_is_lost() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        arena = Arena(MIB)
        view = ArenaView(os.dup(arena.fd))
        block = view.take(arena.put([b"x"])[0])
        del arena, view, block
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_default_budget_is_shared() -> None:
    assert default_budget(1) >= default_budget(4) >= 64 * MIB
