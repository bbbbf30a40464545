"""Named memory as the standard has it, and what has no names: share() and SharedArray."""

from __future__ import annotations

import copy
import errno
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing import shared_memory as standard
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import manycore
from manycore import shared_memory
from manycore._memory import sealed
from manycore._memory.segment import collecting, forget_in_flight
from manycore.shared_memory import ShareableList, SharedMemory, share

SharedArray = shared_memory.SharedArray


@pytest.fixture(autouse=True)
def nothing_in_flight() -> Iterator[None]:
    yield
    forget_in_flight()


@pytest.fixture(scope="module", autouse=True)
def the_standard_tracker_ends() -> Iterator[None]:
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def run_child(code: str, *values: object) -> str:
    """What a fresh interpreter prints that runs `code` with `values` unpickled."""
    script = f"import pickle, sys\nvalues = pickle.load(sys.stdin.buffer)\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(values), capture_output=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert not done.stderr, done.stderr.decode()
    return done.stdout.decode().strip()


# ---- SharedMemory


def test_named_memory_is_attached_by_name_and_by_pickle() -> None:
    memory = SharedMemory(create=True, size=1000)
    try:
        assert memory.size == 1000
        assert memory.buf is not None
        again = SharedMemory(memory.name)
        assert again.buf is not None
        again.buf[0] = 7
        assert memory.buf[0] == 7
        again.close()
        assert run_child("m = values[0]; print(type(m).__module__, m.buf[0]); m.buf[1] = 9", memory).endswith(" 7")
        assert memory.buf[1] == 9
        assert isinstance(memory, standard.SharedMemory)
    finally:
        memory.close()
        memory.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(memory.name)
    with pytest.raises(FileNotFoundError):
        memory.unlink()


def test_a_reader_s_exit_destroys_nothing() -> None:
    memory = SharedMemory(create=True, size=100)
    try:
        for _ in range(2):
            run_child(f"from manycore.shared_memory import SharedMemory; SharedMemory({memory.name!r})")
            assert Path("/dev/shm", memory.name).exists()
    finally:
        memory.close()
        memory.unlink()


def test_another_process_may_unlink() -> None:
    code = (
        "from manycore.shared_memory import SharedMemory\n"
        "m = SharedMemory(create=True, size=100); print(m.name); sys.stdout.flush(); sys.stdin.readline(); m.close()"
    )
    creator = subprocess.Popen(
        [sys.executable, "-c", "import sys\n" + code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert creator.stdout is not None
    name = creator.stdout.readline().decode().strip()
    memory = SharedMemory(name)
    memory.close()
    memory.unlink()
    _, errors = creator.communicate(b"\n", timeout=30)
    assert creator.returncode == 0
    assert b"Traceback" not in errors


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="size"):
        SharedMemory(create=True, size=0)
    with pytest.raises(ValueError, match="size"):
        SharedMemory(create=True, size=-1)
    with pytest.raises(ValueError, match="name"):
        SharedMemory()
    with pytest.raises(FileNotFoundError):
        SharedMemory("manycore_test_is_not_there")
    memory = SharedMemory(create=True, size=10, track=False)
    with pytest.raises(FileExistsError):
        SharedMemory(memory.name, create=True, size=10)
    memory.close()
    memory.unlink()


def test_too_little_memory_is_an_error_at_creation_and_leaves_no_name() -> None:
    before = set(os.listdir("/dev/shm"))
    with pytest.raises(OSError, match="not enough memory") as caught:
        SharedMemory(create=True, size=1 << 50)
    assert caught.value.errno == errno.ENOSPC
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, old[1]))
    try:
        with pytest.raises(OSError, match="cannot create shared memory"):
            SharedMemory(create=True, size=2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert set(os.listdir("/dev/shm")) - before == set()


def test_a_shareable_list() -> None:
    made = ShareableList([1, "text", b"bytes", 2.5, None, True])
    try:
        assert isinstance(made.shm, SharedMemory)
        made[0] = 2
        again = pickle.loads(pickle.dumps(made))
        assert list(again) == [2, "text", b"bytes", 2.5, None, True]
        assert isinstance(again.shm, SharedMemory)
        again.shm.close()
    finally:
        made.shm.close()
        made.shm.unlink()


# ---- share


def test_a_shared_object_arrives_as_itself_read_only_and_once() -> None:
    value: dict[str, Any] = {
        "big": np.arange(100_000.0),
        "small": np.arange(3),
        "list": [1, 2],
        "bytes": b"x" * 100_000,
    }
    handle = share(value)
    data = pickle.dumps(handle)
    first: dict[str, Any] = pickle.loads(data)
    second = pickle.loads(data)
    assert first is second is handle.get()
    assert len(data) < 200
    for name in ("big", "small"):
        assert np.array_equal(first[name], value[name])
        with pytest.raises(ValueError, match="read-only"):
            first[name][0] = 1
    assert first["list"] == [1, 2]
    assert first["bytes"] == value["bytes"]
    assert run_child("v, = values; print(v['big'].sum(), v['big'].flags.writeable)", handle) == "4999950000.0 False"


def test_tasks_read_the_creator_s_own_pages() -> None:
    """A task's array lies in the file that the creator filled; all of it read, the worker has no more of its own."""

    def look(array: Any) -> tuple[float, int, int]:
        total = float(array.sum())
        first = array.__array_interface__["data"][0]
        own = inode = 0
        with open("/proc/self/maps", encoding="ascii") as maps:
            for line in maps:
                place, _, _, _, number, *_ = line.split()
                start, end = (int(side, 16) for side in place.split("-"))
                if start <= first and first + array.nbytes <= end:
                    inode = int(number)
        with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
            for line in rollup:
                if line.startswith("Anonymous:"):
                    own = int(line.split()[1]) << 10
        return total, inode, own

    with manycore.Pool(1) as pool:
        small, large = share(np.ones(1000)), share(np.ones(16 << 20))
        _, _, before = pool.apply(look, (small,))
        for _ in range(3):
            total, inode, own = pool.apply(look, (large,))
            assert (total, inode) == (16 << 20, os.fstat(large._fd).st_ino)
            assert own - before < large.size / 16


def test_the_memory_goes_with_the_handle_and_the_last_view() -> None:
    handle = share(np.arange(100_000))
    array = pickle.loads(pickle.dumps(handle))
    forget_in_flight()
    del handle
    gc.collect()
    assert array[99_999] == 99_999
    assert not sealed._objects
    assert "manycore:share" in Path("/proc/self/maps").read_text()
    del array
    gc.collect()
    assert "manycore:share" not in Path("/proc/self/maps").read_text()


def test_a_receiver_forgets_what_was_released() -> None:
    first, second = share([1]), share([2])
    code = (
        "from manycore._memory import sealed\n"
        "print(len(sealed._objects)); sys.stdout.flush()\n"
        "rest = pickle.load(sys.stdin.buffer); print(len(sealed._objects))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", f"import pickle, sys\nvalues = pickle.load(sys.stdin.buffer)\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(pickle.dumps(first))
    child.stdin.flush()
    assert child.stdout.readline() == b"1\n"
    forget_in_flight()
    del first
    gc.collect()
    assert child.communicate(pickle.dumps(second), timeout=30)[0] == b"1\n"
    assert child.returncode == 0


def test_what_cannot_be_written_is_not_writable() -> None:
    handle = share(b"x" * 10)
    with pytest.raises(PermissionError):
        os.pwrite(handle._fd, b"y", 8192)


def test_a_handle_in_flight_outlives_its_last_reference() -> None:
    kept: list[object] = []
    with collecting(kept):
        data = pickle.dumps([share(np.arange(50_000)), SharedArray(3)])
    gc.collect()
    assert len(kept) == 2
    assert pickle.loads(data)[0][49_999] == 49_999
    kept.clear()
    data = pickle.dumps(share([1]))  # nobody collects: kept for a while
    gc.collect()
    assert pickle.loads(data) == [1]
    forget_in_flight()
    gc.collect()
    with pytest.raises(OSError, match="exited or closed"):
        pickle.loads(data)


def test_no_descriptor_is_lost() -> None:
    forget_in_flight()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(600):
        if number % 2:
            pickle.loads(pickle.dumps(share([number])))
        else:
            pickle.loads(pickle.dumps(SharedArray(10)))
    forget_in_flight()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# ---- SharedArray


def test_every_process_sees_the_elements() -> None:
    array = SharedArray((3, 4), "i4", values=7, lock=True)
    assert isinstance(array, np.ndarray)
    with array.lock:
        array[0, 0] = 1
    said = run_child(
        "a, b, c = values\nwith a.lock: a += 1\nb[...] = 50\nprint(a.sum(), c.shape, type(a).__name__)",
        array,
        array[1:, ::2],
        array.T,
    )
    assert said == f"{2 + 7 * 8 + 4 * 50} (4, 3) SharedArray"
    assert array[0, 0] == 2
    assert array[1, 0] == 50


@pytest.mark.parametrize("dtype", ["?", "i1", "f8", "c16", "U5", "S3", "M8[ns]", "V7", [("a", "i4"), ("b", "f8", 3)]])
@pytest.mark.parametrize("shape", [(), 0, 5, (2, 0, 3), (2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_dtype_shape_and_order(dtype: object, shape: Any, order: str) -> None:
    array = SharedArray(shape, dtype, order=order)
    again = pickle.loads(pickle.dumps(array))
    assert type(again) is SharedArray
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.strides == array.strides
    assert array.tobytes() == bytes(array.nbytes)
    again.view(np.ndarray)[...] = np.ones(1, "u1").astype("i8").astype(array.dtype) if dtype in ("i1", "f8") else array
    assert array.tobytes() == again.tobytes()


def test_what_is_computed_is_an_ordinary_array() -> None:
    array = SharedArray(4, values=[1, 2, 3, 4])
    assert type(array + 1) is np.ndarray
    assert type(np.sqrt(array)) is np.ndarray
    assert array.sum() == 10.0
    before = array
    array += 1
    assert array is before
    for made in (array.copy(), copy.deepcopy(array), array[[0, 1]]):
        assert type(pickle.loads(pickle.dumps(made))) is np.ndarray
        made[0] = 99
    assert array[0] == 2


def test_a_read_only_view_stays_read_only() -> None:
    array = SharedArray(4)
    view = array[:2]
    view.flags.writeable = False
    again = pickle.loads(pickle.dumps(view))
    assert not again.flags.writeable
    assert array.flags.writeable


def test_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="holds references"):
        SharedArray(3, object)


def test_it_goes_through_the_standard_library_s_own_processes() -> None:
    array = SharedArray(1)
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        process = context.Process(target=array.fill, args=(5,))
        process.start()
        process.join(40)
        assert process.exitcode == 0
        assert array[0] == 5
        array[0] = 0


def test_the_face_has_both() -> None:
    assert manycore.share is share
    assert manycore.SharedArray is SharedArray
    code = "import sys, manycore.shared_memory\nprint('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"
