"""What children import again and again is imported once, by their zygote; and nothing of the caller's is."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from manycore._launch import launch, pages, shutdown
from manycore._launch.roster import roster
from manycore._native import brood

HERE = "tests.unit.launch_targets:"
ROUNDS = 20  # launches until one has what the first had to import: the zygote imports it when no request waits


def already_there(names: str) -> list[str]:
    """Launch a child that imports `names`; those that it had from its zygote."""
    read, write = os.pipe()
    child = launch(HERE + "import_and_tell", names.encode(), [write])
    os.close(write)
    with open(read, encoding="ascii") as file:
        found = file.read().split()
    status = child.wait(30)
    assert status is not None
    assert status.exitcode == 0
    return found


@pytest.fixture(autouse=True)
def _new_zygote() -> None:
    shutdown()


def test_standard_modules_are_learned_with_what_they_import() -> None:
    assert already_there("graphlib") == []
    for _ in range(ROUNDS):
        if already_there("graphlib types") == ["graphlib", "types"]:
            return
    pytest.fail("graphlib is imported in each child anew")


def test_modules_of_this_package_are_learned() -> None:
    for _ in range(ROUNDS):
        if already_there("manycore.queues") == ["manycore.queues"]:
            return
    pytest.fail("manycore.queues is imported in each child anew")


def test_a_callers_module_is_imported_by_each_child_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importers = tmp_path / "importers"
    (tmp_path / "a_callers_own.py").write_text(
        f"import graphlib, os\nwith open({str(importers)!r}, 'a') as file:\n    file.write(f'{{os.getpid()}} ')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    while "graphlib" not in already_there("a_callers_own graphlib"):
        pass
    assert already_there("a_callers_own") == []
    pids = importers.read_text().split()
    assert len(pids) == len(set(pids)) >= 3


def test_nothing_is_learned_where_a_caller_has_a_module_of_a_standard_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("import graphlib\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        assert already_there("colorsys graphlib") == []


def test_the_usual_module_is_there_from_the_first_child_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert already_there("typing") == ["typing"]
    bare = subprocess.run([sys.executable, "-c", "import sys; sys.exit('typing' in sys.modules)"], check=False)
    if bare.returncode == 0:  # else something imports it at each interpreter's start
        (tmp_path / "typing.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        shutdown()
        assert already_there("typing") == []


@pytest.mark.parametrize("imported", [False, True])
def test_the_usual_module_is_there_if_the_program_has_it(imported: bool) -> None:
    program = f"""
import {"typing" if imported else "sys"}
import sys
bare = "typing" in sys.modules  # as where something imports it at each interpreter's start
import manycore
with manycore.Pool(1) as pool:
    print(bare, pool.apply(eval, ["'typing' in __import__('sys').modules"]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], check=True, capture_output=True, text=True)
    bare, there = done.stdout.split()
    assert bare == there


@pytest.mark.parametrize("module", ["this", "antigravity"])
def test_modules_that_do_something_are_not_learned(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER", "true")
    for _ in range(3):
        assert already_there(module) == []


def test_another_file_under_the_descriptors_number_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a_callers_file"
    with path.open("wb") as file:
        child = launch(HERE + "import_behind_another_file", b"graphlib", [file.fileno()])
        status = child.wait(30)
    assert status is not None
    assert status.exitcode == 0
    assert path.read_bytes() == b""


def faults(pid: int) -> int:
    """How many pages were copied or mapped for a process, each when it was first used or all at once."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[10 - 3])  # minflt of proc(5)


def test_a_spare_has_its_pages_before_it_is_asked_for_anything() -> None:
    before: dict[int, int] = {}  # by pid, of spares
    found: list[tuple[int, int]] = []
    for _ in range(ROUNDS):
        for entry in roster():
            if entry.role == "spare":
                with contextlib.suppress(OSError):  # it has ended
                    before[entry.pid] = faults(entry.pid)
        ready, child_is_ready = os.pipe()
        end, end_child = os.pipe()
        child = launch(HERE + "ignore_term", b"", [child_is_ready, end])
        os.read(ready, 1)
        if child.pid in before:
            found.append((before[child.pid], faults(child.pid)))
        for fd in (ready, child_is_ready, end, end_child):
            os.close(fd)
        assert child.wait(30) is not None
        if any(spare > 0.8 * child for spare, child in found):
            return
    pytest.fail(f"of a child's page faults, which a spare takes before it is asked, and all of them: {found}")


FORKS = """
import mmap, os, resource
from manycore._launch import pages
from manycore._native import brood

def new(count):
    return mmap.mmap(-1, count * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

def faults_of_writing():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory[::mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_fork(run):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, run())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        return file.read()

memory = new(100)
faults_of_writing()
"""


def in_small_process(program: str) -> None:
    subprocess.run([sys.executable, "-c", FORKS + program], check=True, timeout=30)


def test_pages_that_children_wrote_to_are_there_in_the_next() -> None:
    in_small_process(
        """
def tell():
    assert faults_of_writing() >= 100
    return pages.written()

def prepared():
    brood.populate(runs)
    return b"%d" % faults_of_writing()

runs = pages.common(in_fork(tell), in_fork(tell))
found = int(in_fork(prepared))
assert found < 50, found
"""
    )


def test_a_child_that_wrote_to_very_many_pages_says_nothing() -> None:
    in_small_process(
        """
def tell():
    more = new(4000)
    more.write(b"x" * len(more))
    return b"[" + pages.written() + b"]"

assert in_fork(tell) == b"[]"
"""
    )


def test_a_child_with_much_memory_says_nothing_and_does_not_look_through_it() -> None:
    in_small_process(
        """
def area():
    file = os.memfd_create("area")
    os.ftruncate(file, 2000 * mmap.PAGESIZE)
    return mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE)

def tell():
    more = [area() for _ in range(10)]
    return b"[" + pages.written() + b"]"

assert in_fork(tell) == b"[]"
"""
    )


def test_a_large_store_of_a_librarys_is_passed_over() -> None:
    in_small_process(
        """
import array, ctypes
store = new(1 << 20)
start = ctypes.addressof(ctypes.c_char.from_buffer(store))

def tell():
    store[: 100 * mmap.PAGESIZE] = bytes(100 * mmap.PAGESIZE)
    return pages.written()

runs = array.array("Q", in_fork(tell))
assert runs
assert not any(start <= run < start + len(store) for run in runs[::2])
"""
    )


def test_only_what_two_children_wrote_to_is_common() -> None:
    size = mmap.PAGESIZE
    one = array.array("Q", [4 * size, 3 * size, 10 * size, size])  # pages 4 to 6, and 10
    other = array.array("Q", [size, size, 5 * size, 6 * size, 12 * size, size])  # 1, 5 to 10, and 12
    assert array.array("Q", pages.common(one.tobytes(), other.tobytes())).tolist() == [
        5 * size,
        2 * size,
        10 * size,
        size,
    ]
    assert pages.common(one.tobytes(), b"") == b""


def test_pages_that_are_not_there_are_passed_over() -> None:
    brood.populate(array.array("Q", [mmap.PAGESIZE, mmap.PAGESIZE]).tobytes())
