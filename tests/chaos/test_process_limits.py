"""Starting processes where there is no room for one, and what the kernel ends for want of memory."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.programs import HEAD, LIMIT_S, METHODS, run

SOMEBODY = 54_321  # a user who has no other process: RLIMIT_NPROC counts all of a user's


def as_somebody(number: int) -> list[str]:
    """What runs a command as an ordinary user, who may read what this one may."""
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", *may_read]


def may_become_somebody() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*as_somebody(SOMEBODY), "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_become_somebody(), reason="needs root and setpriv, to become a user without processes")
@pytest.mark.parametrize("method", METHODS)
def test_no_process_is_left(method: str, tmp_path: Path) -> None:
    """Fault 26: from no room at all to room for some; each start works or raises, and then all work again."""
    run(
        tmp_path,
        """
def ready_to_start():
    try:
        process = started()
    except OSError as error:  # LaunchError is one
        assert error.errno == errno.EAGAIN, repr(error)
        assert str(error), error
        return None
    return process

if __name__ == "__main__":
    import errno
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    found = set()
    for limit in (1, 2, 3, 4, 5, 8):
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
        processes = []
        for _ in range(9):
            process = ready_to_start()
            found.add(process is not None)
            if process is None:
                break
            processes.append(process)
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        for process in processes:  # nothing that was started is lost
            assert process.is_alive()
            process.kill()
            process.join(20)
            assert process.exitcode == -9, process.exitcode
        process = context.Process(target=double, args=(4,), result=True)
        process.start()
        assert process.result(20) == 8
        if METHOD == "zygote" and limit % 2:
            from manycore._launch import launcher
            launcher.shutdown()  # the next limit is met by a start of the zygote
        if METHOD == "forkserver" and limit % 2:
            from multiprocessing import forkserver
            forkserver._forkserver._stop()
    assert found == {True, False}, found
""",
        method,
        prefix=as_somebody(SOMEBODY + METHODS.index(method)),
        traceback=method == "forkserver",  # the standard fork server's own
    )


@pytest.mark.skipif(not may_become_somebody(), reason="needs root and setpriv, to become a user without processes")
def test_one_that_has_ended_takes_no_room(tmp_path: Path) -> None:
    """With room for one process, one after the other can be started and joined."""
    run(
        tmp_path,
        """
def ticks_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return sum(int(field) for field in file.read().rpartition(")")[2].split()[11:15])

if __name__ == "__main__":
    import errno
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    for limit in range(1, 20):
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
        try:
            process = started()
        except OSError as error:
            assert error.errno == errno.EAGAIN, repr(error)
            continue
        process.kill()
        process.join(20)
        break
    for _ in range(100):
        process = context.Process(target=double, args=(4,))
        process.start()
        process.join(20)
        assert process.exitcode == 0, process.exitcode
    before = ticks_of(zygote().pid)  # it does not make room for one spare by ending another
    time.sleep(0.5)
    assert ticks_of(zygote().pid) - before < 20
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
""",
        "zygote",
        prefix=as_somebody(SOMEBODY + len(METHODS)),
    )


def cgroup(name: str) -> Path | None:
    """A fresh memory control group below this process's own, where this process may make one."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            group = Path(f"/sys/fs/cgroup/memory{path}") / name
        elif not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            group = Path(f"/sys/fs/cgroup{path}") / name
        else:
            continue
        try:
            group.mkdir()
        except OSError:
            continue
        for limit in ("memory.max", "memory.limit_in_bytes"):
            try:
                (group / limit).write_text(str(192 << 20))
                return group
            except OSError:
                continue
        group.rmdir()
    return None


@pytest.fixture
def small_group() -> Iterator[Path]:
    group = cgroup(f"manycore-test-{os.getpid()}")
    if group is None:
        pytest.skip("no right to make a memory control group")
    yield group
    for _ in range(1000):  # helpers that go when their parent has gone
        try:
            group.rmdir()
            return
        except OSError:
            select.poll().poll(10)


@pytest.mark.parametrize("method", METHODS)
def test_the_kernel_ends_a_process_for_want_of_memory(method: str, small_group: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    body = """
def eat(connection):
    connection.send_bytes(b"here")
    held = []
    while True:
        held.append(b"x" * (1 << 22))

if __name__ == "__main__":
    process = started(eat)
    process.join(40)
    assert process.exitcode == -9, process.exitcode
    assert process.certificate.oom is True, process.certificate
    assert "out of memory" in process.certificate.describe()
    process = started()
    os.kill(process.pid, signal.SIGKILL)  # somebody's doing
    process.join(20)
    assert process.certificate.oom is False, process.certificate
"""
    program.write_text(HEAD + body, encoding="utf-8")
    enter = f"import os, sys; open({str(small_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
    command = [sys.executable, "-c", f"{enter}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
    done = subprocess.run(
        [*command, str(program), method], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


THREADED = """
import threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""


def test_a_preloaded_module_that_starts_threads(tmp_path: Path) -> None:
    """It is named in a warning, and processes start without it; the others stay preloaded."""
    (tmp_path / "starts_threads.py").write_text(THREADED, encoding="utf-8")
    (tmp_path / "starts_threads_too.py").write_text(THREADED, encoding="utf-8")
    (tmp_path / "does_not_import.py").write_text("1 / 0\n", encoding="utf-8")
    names = ["colorsys", "starts_threads", "does_not_import", "starts_threads_too", "wave"]
    program = tmp_path / "program.py"
    body = f"""
def loaded():
    return [name for name in {names!r} if name in sys.modules], len(os.listdir("/proc/self/task"))

if __name__ == "__main__":
    before = context.Process(target=loaded, result=True)
    before.start()
    print(before.result(20)[0])
    running = started()
    manycore.set_forkserver_preload({names!r})
    for _ in range(3):
        process = context.Process(target=loaded, result=True)
        process.start()
        print(*process.result(20))
    running.kill()
    running.join(20)
    print(running.exitcode)
"""
    program.write_text(HEAD + body, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), "zygote"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.stdout == "[]\n" + "['colorsys', 'wave'] 1\n" * 3 + "-9\n", done.stdout + done.stderr
    warned = [line for line in done.stderr.splitlines() if "ManycoreWarning" in line]
    for name in ("starts_threads", "starts_threads_too", "does_not_import"):
        assert sum(f"cannot preload {name}: " in line for line in warned) == 1, done.stderr
    assert len(warned) == 3, done.stderr
    assert "warn_of_preload" not in done.stderr  # no line of ours is shown as if it were to blame


def test_a_zygote_that_has_threads_from_its_start_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(THREADED, encoding="utf-8")
    run(
        tmp_path,
        """
if __name__ == "__main__":
    process = context.Process(target=double, args=(4,))
    try:
        process.start()
    except manycore.LaunchError as error:
        assert "2 threads" in str(error) and "sitecustomize" in str(error), error
    else:
        raise AssertionError("it started")
""",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )


def test_a_library_that_ends_its_threads_before_a_fork_may_be_preloaded(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    run(
        tmp_path,
        """
def loaded():
    return "numpy" in sys.modules

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "4"
    manycore.set_forkserver_preload(["numpy"])
    process = context.Process(target=loaded, result=True)
    process.start()
    assert process.result(20) is True
""",
    )
