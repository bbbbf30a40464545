"""What can go wrong around processes, one program each: it must end by itself, in time, with the right answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.programs import HEAD, LIMIT_S, METHODS, run


@pytest.mark.parametrize("method", METHODS)
def test_a_grandchild_that_holds_every_descriptor_does_not_hide_a_death(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def fork_and_wait(connection):
    if os.fork() == 0:
        os.setsid()
        connection.send_bytes(str(os.getpid()).encode())
        time.sleep(30)
        os._exit(0)
    threading.Event().wait()

if __name__ == "__main__":
    here, there = context.Pipe()
    process = context.Process(target=fork_and_wait, args=(there,))
    process.start()
    grandchild = int(here.recv_bytes())
    os.kill(process.pid, signal.SIGKILL)
    begin = time.monotonic()
    process.join(10)
    assert process.exitcode == -9 and time.monotonic() - begin < 5, (process, time.monotonic() - begin)
    try:
        os.kill(grandchild, signal.SIGKILL)
    except ProcessLookupError:
        pass
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_deaf_processes_end(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def deaf(connection):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    wait(connection)

if __name__ == "__main__":
    for target in (wait, deaf):
        process = started(target)
        os.kill(process.pid, signal.SIGSTOP)
        process.terminate(grace=0.1)
        assert not process.is_alive()
        process = started(target)
        process.kill()
        process.join(10)
        assert process.exitcode == -9
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_thread_that_starts_a_process_may_end(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    found = []
    thread = threading.Thread(target=lambda: found.append(started(daemon=True)))
    thread.start()
    thread.join()
    found[0].join(0.5)
    assert found[0].is_alive()
    found[0].kill()
    found[0].join()
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_someone_else_reaps_everything(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.001)

if __name__ == "__main__":
    threading.Thread(target=reap, daemon=True).start()
    for code in (0, 3, 7):
        process = context.Process(target=leave, args=(code,))
        process.start()
        process.join(20)
        assert not process.is_alive()
        assert process.exitcode == code, process.exitcode
    process = started()
    process.kill()
    process.join(20)
    assert process.exitcode == -9
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_sigchld_is_ignored(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for code in (0, 3):
        process = context.Process(target=leave, args=(code,))
        process.start()
        process.join(20)
        assert process.exitcode == code, process.exitcode
""",
        method,
    )


def test_the_zygote_is_killed_while_processes_run(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def work(connection):
    connection.send_bytes(b"here")
    connection.recv_bytes()
    return 5

if __name__ == "__main__":
    for _ in range(5):
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there,), result=True)
        process.start()
        there.close()
        here.recv_bytes()
        killed = started()
        old = zygote().pid
        os.kill(old, signal.SIGKILL)
        here.send_bytes(b"go")
        assert process.result(20) == 5
        assert process.exitcode == 0, process.exitcode
        killed.kill()
        killed.join(20)
        assert killed.exitcode == -9, killed.exitcode
        other = context.Process(target=leave, args=(4,))
        other.start()
        other.join(20)
        assert other.exitcode == 4
        assert zygote().pid != old
""",
    )


def test_the_fork_server_is_killed_while_processes_run(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def work(connection):
    connection.send_bytes(b"here")
    connection.recv_bytes()
    return 5

if __name__ == "__main__":
    from multiprocessing import forkserver
    for _ in range(3):
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there,), result=True)
        process.start()
        there.close()
        here.recv_bytes()
        killed = started()
        old = forkserver._forkserver._forkserver_pid
        os.kill(old, signal.SIGKILL)
        assert process.is_alive() and killed.is_alive()
        here.send_bytes(b"go")
        assert process.result(20) == 5
        assert process.exitcode == 0, process.exitcode
        killed.kill()
        killed.join(20)
        assert killed.exitcode == -9, killed.exitcode
        other = context.Process(target=leave, args=(4,))
        other.start()
        other.join(20)
        assert other.exitcode == 4
        assert forkserver._forkserver._forkserver_pid != old
""",
        "forkserver",
    )


def test_the_zygote_is_killed_again_and_again_while_processes_start(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    ends = threading.Event()
    codes = []
    def kill():
        before = in_vain = 0
        while not ends.wait(0.02):
            try:
                os.kill(zygote().pid, signal.SIGKILL)
            except (AttributeError, ProcessLookupError):
                pass
            in_vain = in_vain + 1 if len(codes) == before else 0  # 20 in a row are an error of `start`
            before = len(codes)
            ends.wait(0.3 if in_vain < 10 else 3)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    begin = time.monotonic()
    while time.monotonic() < begin + 4:
        process = context.Process(target=leave, args=(4,))
        process.start()
        process.join(20)
        codes.append(process.exitcode)
    ends.set()
    killer.join()
    assert set(codes) == {4}, codes
""",
    )


def test_the_zygote_is_stopped(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    process = started()
    os.kill(zygote().pid, signal.SIGSTOP)
    process.kill()
    process.join(20)
    assert process.exitcode == -9, process.exitcode
    process = context.Process(target=double, args=(4,), result=True)
    process.start()
    assert process.result(20) == 8
    os.kill(zygote().pid, signal.SIGSTOP)
""",
    )


def test_a_zygote_that_cannot_start_is_one_clear_error(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    manycore.set_executable("/bin/false")
    process = context.Process(target=leave, args=(4,))
    try:
        process.start()
    except manycore.LaunchError as error:
        assert "zygote" in str(error), error
    else:
        raise AssertionError("it started")
    manycore.set_executable(sys.executable)
    process = context.Process(target=leave, args=(4,))
    process.start()
    process.join()
    assert process.exitcode == 4
""",
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_parent_is_process_one(method: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-fp", "--mount-proc", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make a namespace of processes")
    program = tmp_path / "program.py"
    body = """
if __name__ == "__main__":
    assert os.getpid() == 1
    for _ in range(3):
        process = context.Process(target=double, args=(4,), result=True)
        process.start()
        assert process.result(20) == 8
    if METHOD == "zygote":
        os.kill(zygote().pid, signal.SIGKILL)
    process = context.Process(target=double, args=(4,), result=True)
    process.start()
    assert process.result(20) == 8
"""
    program.write_text(HEAD + body, encoding="utf-8")
    command = ["unshare", "-fp", "--mount-proc", sys.executable, str(program), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


WHOLE = "MANYCORE_CHAOS_WHOLE" in os.environ  # a few minutes longer
PROCESSES = 1000
FEW = [  # the numbers of descriptors that are left
    (method, above)
    for method, step in zip(METHODS, (4, 8, 8, 8), strict=True)
    for above in range(0, 41, 1 if WHOLE else step)
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "above"), FEW)
def test_no_descriptor_is_left(method: str, above: int, tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
if __name__ == "__main__":
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + {above}, hard))
    failed = 0
    for _ in range(3):
        try:
            process = context.Process(target=double, args=(4,), result=True)
            process.start()
            assert process.result(20) == 8
        except OSError as error:
            failed += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    process = context.Process(target=double, args=(4,), result=True)
    try:
        process.start()
    except manycore.LaunchError:
        assert METHOD == "forkserver"  # a server that has begun with as few itself; its first error ends it
        process = context.Process(target=double, args=(4,), result=True)
        process.start()
    assert process.result(20) == 8
    print(failed)
""",
        method,
        traceback=method == "forkserver",  # the standard fork server's own
    )


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_the_zygote_has_no_descriptor_left(left: int, tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
from manycore._launch import wire

def is_lasting(number, target):  # and no child's, which the zygote closes when that has ended
    return number <= wire.KEPT_FD or ("manycore-stacks" not in target and target != lifeline)

if __name__ == "__main__":
    told = False
    while not told:
        process = context.Process(target=double, args=(4,), result=True)
        process.start()
        assert process.result(20) == 8
        told = process.certificate.wall_seconds > 0  # by the zygote, which so has closed what the request brought
    folder = "/proc/%d/fd/" % zygote().pid
    lifeline = os.readlink(folder + str(wire.LIFELINE_FD))
    links = dict()
    for name in os.listdir(folder):
        try:
            links[int(name)] = os.readlink(folder + name)
        except FileNotFoundError:  # a child's
            pass
    used = max(number for number, target in links.items() if is_lasting(number, target)) + 1
    limits = resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE)
    resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE, (used + {left}, limits[1]))
    os.environ["MANYCORE_TEST_VARIABLE"] = "now"  # so that no child will do that was forked before
    process = context.Process(target=double, args=(4,), result=True)
    try:
        process.start()
        assert {left} > 0, "it started"
        assert process.result(20) == 8
    except manycore.LaunchError as error:
        assert "zygote" in str(error), error
    resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE, limits)
    for _ in range(3):
        process = context.Process(target=os.getenv, args=("MANYCORE_TEST_VARIABLE",), result=True)
        process.start()
        assert process.result(20) == "now"
""",
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_storm_of_signals(method: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def storm():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

def double_in_a_storm(value):
    storm()
    time.sleep(0.02)
    return 2 * value

if __name__ == "__main__":
    storm()
    for _ in range(30 if METHOD in ("zygote", "fork") else 4):
        process = context.Process(target=double_in_a_storm, args=(4,), result=True)
        process.start()
        assert process.result(20) == 8
    process = started(target=wait)
    process.terminate(grace=5)
    assert process.exitcode == -15, process.exitcode
    signal.setitimer(signal.ITIMER_REAL, 0)
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_process_with_handlers_of_its_own(method: str, tmp_path: Path) -> None:
    """It ignores SIGTERM, and has a handler for SIGCHLD that reaps everything: neither hides an end from anybody."""
    run(
        tmp_path,
        """
def hostile(connection):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    def reap(*_):
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
    signal.signal(signal.SIGCHLD, reap)
    inner = manycore.get_context(METHOD).Process(target=leave, args=(6,))
    inner.start()
    inner.join(20)
    connection.send(inner.exitcode)
    threading.Event().wait()

if __name__ == "__main__":
    here, there = context.Pipe()
    process = context.Process(target=hostile, args=(there,))
    process.start()
    assert here.recv() == 6
    process.terminate()
    process.join(0.1)
    assert process.is_alive()
    process.terminate(grace=0.1)
    assert process.exitcode == -9, process.exitcode
""",
        method,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_process_that_forks_by_itself(method: str, tmp_path: Path) -> None:
    """A fork that comes back and runs the exit handlers, and a daemon by double fork: the process's own end counts."""
    run(
        tmp_path,
        """
def fork_and_return(connection):
    if os.fork() == 0:
        sys.exit(9)  # as a task that does not know better; the exit handlers run in it
    os.wait()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            connection.send(os.getpid())
            time.sleep(30)
        os._exit(0)
    os.wait()
    return "done"

if __name__ == "__main__":
    for _ in range(3):
        here, there = context.Pipe()
        process = context.Process(target=fork_and_return, args=(there,), result=True)
        process.start()
        there.close()
        assert process.result(20) == "done"
        assert process.exitcode == 0, process.exitcode
        os.kill(here.recv(), signal.SIGKILL)  # it outlives the process, as a daemon is meant to
    assert manycore.active_children() == []
""",
        method,
    )


@pytest.mark.timeout(60 + PROCESSES / 5)
@pytest.mark.parametrize(("method", "processes"), [("zygote", PROCESSES), ("spawn", 10), ("forkserver", 20)])
def test_processes_from_a_program_with_busy_threads(method: str, processes: int, tmp_path: Path) -> None:
    """Ten threads hold locks and log all the time: a fork of this program would stop at the first of them."""
    run(
        tmp_path,
        f"""
def hammer():
    while not ends.is_set():
        with lock:
            logging.warning("busy")
            hash(tuple(range(10)))

def log_too(number):
    logging.warning("from a child")
    with threading.Lock():
        return number

if __name__ == "__main__":
    logging.basicConfig(stream=open(os.devnull, "w"))
    lock = threading.Lock()
    ends = threading.Event()
    sys.setswitchinterval(0.0005)
    threads = [threading.Thread(target=hammer) for _ in range(10)]
    for thread in threads:
        thread.start()
    numbers = []
    for first in range(0, {processes}, 50):
        last = min(first + 50, {processes})
        processes = [context.Process(target=log_too, args=(number,), result=True) for number in range(first, last)]
        for process in processes:
            process.start()
        numbers += [process.result(60) for process in processes]
        assert {{process.exitcode for process in processes}} == {{0}}
    ends.set()
    assert numbers == list(range({processes}))
""",
        method,
        stderr=subprocess.DEVNULL,
        limit=max(LIMIT_S, PROCESSES / 6),
    )


UNGUARDED = {
    "process": "process = context.Process(target=double, args=(1,))\nprocess.start()\nprocess.join()\n"
    "sys.exit(process.exitcode)\n",
    "pool": "with context.Pool(2) as pool:\n    pool.map(double, range(4))\n",
    "executor": "with manycore.ProcessPoolExecutor(2, mp_context=context) as pool:\n"
    "    list(pool.map(double, range(4)))\n",
    "map": "manycore.set_start_method(METHOD)\nmanycore.map(double, range(4))\n",
}


@pytest.mark.parametrize("what", UNGUARDED)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_unguarded_script_is_one_clear_error(method: str, what: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HEAD + UNGUARDED[what], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "__name__ == " in done.stderr
    assert done.stderr.count("_launch") == 0  # nor the many lines that led here


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_unguarded_script_may_catch_the_error(method: str, tmp_path: Path) -> None:
    body = """
try:
    with context.Pool(2) as pool:
        print(pool.map(double, range(4)))
except RuntimeError:
    pass
"""
    assert run(tmp_path, body, method) == "[0, 2, 4, 6]\n"


@pytest.mark.parametrize("what", UNGUARDED)
@pytest.mark.parametrize("method", ["zygote", "fork"])
def test_an_unguarded_script_just_runs(method: str, what: str, tmp_path: Path) -> None:
    run(tmp_path, UNGUARDED[what], method)
