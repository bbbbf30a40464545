"""A zygote's memory in a file: its children see what they saw without, and it writes to nothing of it between forks."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manycore._launch import launch, launcher, preload, shutdown
from tests.unit.launch_targets import worked

HERE = "tests.unit.launch_targets:"
ROUNDS = 200  # of starts at most until a zygote's memory is in a file; about ten do


@pytest.fixture(autouse=True)
def a_zygote_of_its_own() -> Iterator[None]:
    shutdown()
    yield
    shutdown()


def zygote() -> int:
    found = launcher.current()._zygote
    assert found is not None
    return found.pid


def has_spare() -> bool:
    launcher_ = launcher.current()
    with launcher_._lock:  # as its reaper does who looks
        found = launcher_._zygote
        return found is None or any(slot.look() for slot in found._slots)


def start(payload: bytes = b"0") -> None:
    """One process, which a spare becomes where there has been one."""
    deadline = time.monotonic() + 0.1
    while not has_spare() and time.monotonic() < deadline:
        select.poll().poll(1)
    child = launch(HERE + "exit_with", payload, linger=True)  # as a `Process`: there are two spares
    status = child.wait(30)
    assert status is not None
    assert status.exitcode == int(payload), status


def mapped(pid: int) -> dict[str, int]:
    """Of each file that has memory of a process: its name with the inode, and the bytes that were written to since."""
    found: dict[str, int] = {}
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            name = f"{fields[5]} {fields[4]}" if len(fields) > 5 and "manycore-memory" in fields[5] else ""
        elif fields[0] == "Anonymous:" and name:
            found[name] = found.get(name, 0) + int(fields[1]) * 1024
    return found


def with_image(but: str = "") -> str:
    """Start processes until the zygote's memory is in a file, another one than `but`; its name."""
    for _ in range(ROUNDS):
        start()
        names = [name for name in mapped(zygote()) if name != but]
        if names:
            return names[0]
    raise AssertionError(mapped(zygote()))


def test_processes_work_as_ever() -> None:
    with_image()
    for seed in range(10):
        read, write = os.pipe()
        with launch_of("work", str(seed).encode(), [write]):
            os.close(write)
            with open(read, "rb") as file:
                assert file.read() == worked(seed)


class launch_of:  # noqa: N801  # it reads as a function
    """A child within a block, which ends well."""

    def __init__(self, function: str, payload: bytes, fds: list[int]) -> None:
        self.child = launch(HERE + function, payload, fds)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        status = self.child.wait(30)
        assert status is not None
        assert status.exitcode == 0, status


def test_nothing_more_of_it_is_written_from_fork_to_fork() -> None:
    with_image()
    found = []
    for _ in range(20):  # a request that finds no spare runs Python in the zygote
        before = mapped(zygote())
        for _ in range(5):
            start()
        found.append((before, after := mapped(zygote())))
        if list(before) == list(after) and sum(after.values()) - sum(before.values()) <= 8 * 4096:
            return
    pytest.fail(f"bytes that the zygote had written of the file's memory, before and after five starts: {found}")


def test_it_is_put_anew_when_the_zygote_has_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = with_image()
    read, write = os.pipe()
    end, end_write = os.pipe()
    older = launch(HERE + "ignore_term", b"", [write, end])
    os.read(read, 1)
    (tmp_path / "image_module.py").write_text(f"value = {list(range(1000))}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload("image_module")
    assert with_image(name) != name
    with launch_of("work", b"1", [write]):
        assert os.read(read, 100) == worked(1)
    os.write(end_write, b"x")  # the older one has its memory still
    status = older.wait(30)
    assert status is not None
    assert status.exitcode == 0
    for fd in (read, write, end, end_write):
        os.close(fd)


HOOKS = """
import os
called = []
os.register_at_fork(before=lambda: called.append("before"), after_in_child=lambda: called.append("child"),
                    after_in_parent=lambda: called.append("parent"))

def tell(payload, fds):
    os.write(fds[0], f"{called.count('before')} {called.count('parent')} {called.count('child')}".encode())
"""


def test_where_a_fork_has_hooks_of_a_callers_module_they_are_called_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image_hooks.py").write_text(HOOKS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload("image_hooks")
    read, write = os.pipe()
    forks = []
    for _ in range(30):
        start()
        child = launch("image_hooks:tell", b"", [write], linger=True)
        assert child.wait(30) is not None
        before, parent, child_ = map(int, os.read(read, 1000).split())
        forks.append(before)
        assert (parent, child_) == (before - 1, 1)
    assert len(set(forks)) == len(forks)  # each fork is another one
    assert not mapped(zygote())
    os.close(read)
    os.close(write)


def test_hooks_of_the_standard_library_are_in_order_in_the_child() -> None:
    preload("logging", "concurrent.futures.thread")
    with_image()
    for _ in range(5):
        read, write = os.pipe()
        with launch_of("use_logging_and_threads", b"", [write]):
            os.close(write)
            with open(read, "rb") as file:
                assert file.read() == b"[0, 1, 4]\n"


def test_where_the_zygote_has_shared_objects_each_fork_is_known_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image_locks.py").write_text("import manycore\nlock = manycore.Lock()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload("image_locks")
    for _ in range(30):
        start()
    assert not mapped(zygote())


def test_children_of_many_images_keep_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    end, end_write = os.pipe()
    ready, write = os.pipe()
    older = []
    for number in range(6):
        (tmp_path / f"image_of_{number}.py").write_text(f"value = {list(range(1000))}\n", encoding="utf-8")
        preload(f"image_of_{number}")
        for _ in range(20):
            start()
        older.append(launch(HERE + "ignore_term", b"", [write, end], linger=True))
        os.read(ready, 1)
    names = {name for child in older for name in mapped(child.pid)}
    assert 1 <= len(names) <= 3
    os.write(end_write, bytes(len(older)))
    for child in older:
        status = child.wait(30)
        assert status is not None
        assert status.exitcode == 0
    for fd in (ready, write, end, end_write):
        os.close(fd)


@pytest.mark.parametrize("allocator", ["malloc", "malloc_debug", "pymalloc_debug", "default"])
def test_with_any_allocator_of_the_interpreter(allocator: str) -> None:
    program = """
from tests.unit import test_image
for _ in range(30):
    test_image.start()
test_image.test_processes_work_as_ever() if {known} else None
from manycore._launch import image
from manycore._native import brood
import gc
assert bool(brood.arenas(gc.get_objects())) == {known}
"""
    known = allocator == "default"
    environment = {**os.environ, "PYTHONMALLOC": allocator}
    subprocess.run([sys.executable, "-c", program.format(known=known)], check=True, timeout=100, env=environment)


def test_a_process_whose_memory_is_put_into_a_file_goes_on() -> None:
    program = """
import array, ctypes, gc, mmap
from manycore._launch import image
from manycore._native import brood
from tests.unit.launch_targets import worked

image._MOST_BYTES = 1 << 30  # a heap with holes
expected = [worked(seed) for seed in range(3)]
foreign = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
foreign.write(b"x" * len(foreign))
for _ in range(5):
    kept = [{str(number): [number] * 3} for number in range(5000)]
    gc.freeze()
    runs = array.array("Q", image.memory())
    assert sum(runs[1::2]) > 1 << 20
    places = sorted(zip(runs[::2], runs[1::2]))
    assert all(start + size <= after for (start, size), (after, _) in zip(places, places[1:]))
    address = ctypes.addressof(ctypes.c_char.from_buffer(foreign))
    assert not any(start <= address < start + size for start, size in places)
    brood.put_in_file(runs.tobytes())
    assert kept == [{str(number): [number] * 3} for number in range(5000)]
    assert [worked(seed) for seed in range(3)] == expected
maps = [line for line in open("/proc/self/maps") if "manycore-memory" in line]
assert maps
assert all(" rw-p " in line for line in maps)
try:
    brood.put_in_file(array.array("Q", [mmap.PAGESIZE, mmap.PAGESIZE]).tobytes())
except OSError as error:
    assert error.errno == 14, error  # EFAULT
else:
    raise AssertionError
assert [worked(seed) for seed in range(3)] == expected
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("looked_at", [False, True])
def test_much_memory_is_left_as_it_is(looked_at: bool) -> None:
    program = f"""
import gc
from manycore._launch import image
if {looked_at}:
    image._OBJECT_BYTES = 0
else:
    gc.get_objects = lambda: 1 / 0  # it writes to each
much = [{{number: []}} for number in range(400_000)]
gc.freeze()
assert image.memory() == b""
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_memory_is_put_into_a_file_at_once_and_once() -> None:
    program = """
import array, ctypes, mmap, os, select, signal, socket, time
from manycore._native import brood

def pair():
    return [end.detach() for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]

def fork_a_spare():
    zygote.launched(child, 1, True)
    for _ in range(2):  # there is one; it has ended, which nobody asks about
        event, _ = zygote.wait(time.monotonic_ns() + 50_000_000)
        if event == brood.BORN:
            os._exit(0)
        assert event == brood.TIME

def file():
    lines = (line.split() for line in open("/proc/self/maps") if line.startswith(f"{address:x}-"))
    return next((fields[4] for fields in lines if "manycore-memory" in fields[5]), None)

lifeline, _ = os.pipe()
said, _ = os.pipe2(os.O_NONBLOCK)
zygote = brood.Brood([pair()[0]], lifeline, os.pipe2(os.O_NONBLOCK), said, [pair(), pair()])
zygote.prepared = True
child = zygote.fork()
if child == 0:
    select.poll().poll()
memory = mmap.mmap(-1, mmap.PAGESIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
runs = array.array("Q", [address, mmap.PAGESIZE]).tobytes()
zygote.take_image(runs)
assert zygote.wait(0) == (brood.TIME, 0)
first = file()
assert first is not None
fork_a_spare()  # what comes later, as an import, may have put other things there
assert file() == first
os.kill(child, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


HOSTILE = {
    "restores": "import signal; signal.signal(signal.SIGCHLD, signal.signal(signal.SIGCHLD, print))",
    "ignores": "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "reaps": "import os, signal; signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, 0))",
    "audits": "import sys; sys.addaudithook(lambda event, _: 1 / 0 if event.startswith('gc.') else None)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_preloaded_module_has_set_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"image_{name}.py").write_text(HOSTILE[name], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    preload(f"image_{name}")
    start()
    first = zygote()
    for _ in range(20):
        start()
    assert zygote() == first
    child = launch(HERE + "exit_with", b"0")
    status = child.wait(30)
    assert status is not None
    assert status.peak_rss_bytes > 0, status  # what only the zygote can tell


def test_an_idle_zygote_leaves_its_memory_as_it_is() -> None:
    with_image()
    before: dict[str, int] = {}
    while before != (before := mapped(zygote())):  # it may have something to learn yet
        select.poll().poll(300)
    deadline = time.monotonic() + 2.5  # its spares end meanwhile
    while time.monotonic() < deadline:
        time.sleep(0.1)
    assert mapped(zygote()) == before
    start()
