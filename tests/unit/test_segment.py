"""Segments and cells: what is shared, what is refused, what comes back."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from manycore._memory import cells
from manycore._memory.arena import Arena, ArenaView
from manycore._memory.available import available_bytes
from manycore._memory.segment import Segment, forget_in_flight
from manycore._native.mapping import Mapping, allocate, punch
from manycore.shared_memory import share


def run_child(code: str, payload: bytes) -> str:
    """What a fresh interpreter prints that runs `code` with the pickle in `data`."""
    script = f"import pickle, sys\ndata = sys.stdin.buffer.read()\n{code}"
    done = subprocess.run([sys.executable, "-c", script], input=payload, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_bytes_are_shared_with_a_process_that_runs_already() -> None:
    segment = Segment.create(10_000)
    segment.buffer[:5] = b"there"
    said = run_child(
        "s = pickle.loads(data); print(s.size, bytes(s.buffer[:5])); s.buffer[:4] = b'back'", pickle.dumps(segment)
    )
    assert said == "10000 b'there'"
    assert bytes(segment.buffer[:4]) == b"back"


def test_a_process_maps_a_segment_once() -> None:
    segment = Segment.create(100)
    assert pickle.loads(pickle.dumps(segment)) is segment
    assert Segment.from_fd(os.dup(segment.fd)) is segment


def test_a_view_outlives_close_and_the_object() -> None:
    segment = Segment.create(100)
    view = segment.buffer[10:20]
    segment.close()
    segment.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(segment)
    del segment
    view[:] = b"0123456789"
    assert bytes(view) == b"0123456789"


def test_no_descriptor_is_lost() -> None:
    forget_in_flight()
    before = descriptors()
    for _ in range(100):
        segment = Segment.create(5000)
        assert pickle.loads(pickle.dumps(segment)) is segment
        del segment
    forget_in_flight()
    assert descriptors() == before


def test_it_cannot_shrink_or_grow() -> None:
    segment = Segment.create(8192)
    for size in (100, 100_000):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)


def test_a_sender_that_is_gone_is_named() -> None:
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    pid = subprocess.run(command, capture_output=True, check=True).stdout
    segment = Segment.create(100)
    rebuild, (inode, size, _) = segment.__reduce__()
    segment.close()
    with pytest.raises(OSError, match=f"sent by process {int(pid)}, which has exited"):
        rebuild(inode, size, (int(pid), 0))


def test_another_file_under_the_same_number_is_refused() -> None:
    segment = Segment.create(100)
    rebuild, (inode, size, handle) = segment.__reduce__()
    number = segment.fd
    segment.close()
    other = os.open("/dev/null", os.O_RDWR)
    os.dup2(other, number)
    with pytest.raises(OSError, match="closed it"):
        rebuild(inode, size, handle)
    os.close(number)
    if other != number:
        os.close(other)


def test_more_than_the_machine_has_is_an_error() -> None:
    with pytest.raises(OSError, match="not enough memory"):
        Segment.create(available_bytes() + (1 << 30))
    assert available_bytes() > 0


@pytest.fixture
def file_limit() -> Iterator[int]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    yield 1 << 20
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_over_the_file_size_limit(file_limit: int) -> None:
    before = descriptors()
    with pytest.raises(OSError, match="cannot give"):
        Segment.create(file_limit + 4096)
    assert descriptors() == before


def test_at_the_descriptor_limit() -> None:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, old[1]))
    try:
        with pytest.raises(OSError, match="cannot create shared memory"):
            Segment.create(100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def test_an_interval_timer_does_not_stop_a_large_allocation() -> None:
    ticks = []
    old = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        segment = Segment.create(200 << 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert segment.size == 200 << 20
    assert ticks


def test_punched_pages_read_as_zeros() -> None:
    fd = os.memfd_create("test")
    size = 4 << 20
    allocate(fd, 0, 2 * size)
    assert os.fstat(fd).st_blocks * 512 == 2 * size
    view = memoryview(Mapping(fd, 2 * size))
    view[size] = view[size - 1] = 7
    punch(fd, size, size)
    assert (view[size - 1], view[size]) == (7, 0)
    assert os.fstat(fd).st_blocks * 512 == size + 4096  # the page that was just read is there again
    os.close(fd)


def test_a_mapping_may_be_read_only() -> None:
    fd = os.memfd_create("test")
    os.posix_fallocate(fd, 0, 4096)
    mapping = Mapping(fd, 4096, writable=False)
    assert memoryview(mapping).readonly
    assert len(mapping) == 4096
    assert mapping.address % 4096 == 0
    os.close(fd)
    with pytest.raises(OSError, match="cannot map"):
        Mapping(fd, 4096)


def test_cells_do_not_overlap_and_are_zeroed() -> None:
    taken = [cells.allocate(size) for size in (1, 64, 65, 200, 64, 30_000)]
    for number, cell in enumerate(taken, 1):
        assert cell.offset % 64 == 0
        assert cell.size % 64 == 0
        assert bytes(cell.buffer) == bytes(cell.size)
        cell.buffer[:] = bytes([number]) * cell.size
    for number, cell in enumerate(taken, 1):
        assert bytes(cell.buffer) == bytes([number]) * cell.size


def test_a_private_cell_is_used_again_and_zeroed() -> None:
    first = cells.allocate(64)
    first.buffer[:] = b"x" * 64
    place = (first.segment.inode, first.offset)
    del first
    again = cells.allocate(64)
    assert (again.segment.inode, again.offset) == place
    assert bytes(again.buffer) == bytes(64)


def test_a_cell_that_was_sent_is_not_used_again() -> None:
    cell = cells.allocate(64)
    place = (cell.segment.inode, cell.offset)
    data = pickle.dumps(cell)
    del cell
    later = [cells.allocate(64) for _ in range(10)]
    assert place not in {(other.segment.inode, other.offset) for other in later}
    assert pickle.loads(data).offset == place[1]


def test_a_cell_that_lived_through_a_fork_is_not_used_again() -> None:
    cell = cells.allocate(64)
    place = (cell.segment.inode, cell.offset)
    pid = os.fork()
    if pid == 0:
        cell.buffer[:2] = b"hi"
        mine = cells.allocate(64)
        os._exit(0 if mine.segment is not cell.segment else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert bytes(cell.buffer[:2]) == b"hi"
    del cell
    other = cells.allocate(64)
    assert (other.segment.inode, other.offset) != place


def test_many_cells_cost_few_descriptors() -> None:
    before = descriptors()
    many = [cells.allocate(64) for _ in range(20_000)]
    assert descriptors() - before <= 25
    for cell in many:
        pickle.dumps(cell)
    forget_in_flight()
    del many, cell
    assert descriptors() - before <= 2


def test_where_memfd_is_refused_a_nameless_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSYS, "refused")

    monkeypatch.setattr(os, "memfd_create", refuse)
    before = set(os.listdir("/dev/shm"))
    segment = Segment.create(10_000)
    segment.buffer[:5] = b"there"
    assert run_child("s = pickle.loads(data); print(bytes(s.buffer[:5]))", pickle.dumps(segment)) == "b'there'"
    arena = Arena(1 << 20)
    (ref,) = arena.put([b"x" * 1000])
    assert bytes(ArenaView(os.dup(arena.fd)).take(ref)) == b"x" * 1000
    arena.trim()
    assert pickle.loads(pickle.dumps(share([1, 2]))) == [1, 2]
    assert set(os.listdir("/dev/shm")) == before
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="cannot create shared memory"):
        Segment.create(100)
