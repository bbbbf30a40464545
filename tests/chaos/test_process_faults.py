"""What can go wrong around processes, one program each: it must end by itself, in time, with the right answer."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

METHODS = ["zygote", "fork", "spawn", "forkserver"]
LIMIT_S = 50

HEAD = """
import itertools, logging, os, resource, signal, subprocess, sys, threading, time
import manycore

METHOD = sys.argv[1]
context = manycore.get_context(METHOD)

def double(value):
    return 2 * value

def leave(code):
    os._exit(code)

def wait(connection):
    connection.send_bytes(b"here")
    threading.Event().wait()

def started(target=wait, **options):
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there,), **options)
    process.start()
    there.close()
    assert here.recv_bytes() == b"here"
    here.close()
    return process

def zygote():
    from manycore._launch import launcher
    return launcher.current()._zygote
"""


def run(tmp_path: Path, body: str, method: str = "zygote", guard: bool = True, **options: object) -> str:
    """The output of a program, which must succeed."""
    text = HEAD + "\n" + body
    program = tmp_path / "program.py"
    program.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(program), method],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return str(done.stdout)


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


def test_the_zygote_is_killed_again_and_again_while_processes_start(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    ends = threading.Event()
    def kill():
        while not ends.wait(0.02):
            try:
                os.kill(zygote().pid, signal.SIGKILL)
            except (AttributeError, ProcessLookupError):
                pass
            ends.wait(0.3)
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    codes = []
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


def test_the_parent_is_process_one(tmp_path: Path) -> None:
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
    os.kill(zygote().pid, signal.SIGKILL)
    process = context.Process(target=double, args=(4,), result=True)
    process.start()
    assert process.result(20) == 8
"""
    program.write_text(HEAD + body, encoding="utf-8")
    command = ["unshare", "-fp", "--mount-proc", sys.executable, str(program), "zygote"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("above", range(0, 40, 4))
def test_no_descriptor_is_left(above: int, tmp_path: Path) -> None:
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
    process.start()
    assert process.result(20) == 8
    print(failed)
""",
    )


@pytest.mark.parametrize("left", [0, 1, 2, 3, 4])
def test_the_zygote_has_no_descriptor_left(left: int, tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
if __name__ == "__main__":
    process = context.Process(target=double, args=(4,), result=True)
    process.start()
    assert process.result(20) == 8
    used = max(int(name) for name in os.listdir("/proc/%d/fd" % zygote().pid)) + 1
    limits = resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE)
    resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE, (used + {left}, limits[1]))
    process = context.Process(target=double, args=(4,), result=True)
    try:
        process.start()
        assert {left} > 0, "it started"
        assert process.result(20) == 8
    except manycore.LaunchError as error:
        assert "zygote" in str(error), error
    resource.prlimit(zygote().pid, resource.RLIMIT_NOFILE, limits)
    process = context.Process(target=double, args=(4,), result=True)
    process.start()
    assert process.result(20) == 8
""",
    )


def test_a_storm_of_signals(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
if __name__ == "__main__":
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for _ in range(30):
        process = context.Process(target=double, args=(4,), result=True)
        process.start()
        assert process.result(20) == 8
    signal.setitimer(signal.ITIMER_REAL, 0)
""",
    )


@pytest.mark.timeout(120)
def test_a_thousand_processes_from_a_program_with_busy_threads(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
def hammer():
    while not ends.is_set():
        with lock:
            logging.warning("busy")
            hash(tuple(range(10)))

if __name__ == "__main__":
    logging.basicConfig(stream=open(os.devnull, "w"))
    lock = threading.Lock()
    ends = threading.Event()
    sys.setswitchinterval(0.0005)
    threads = [threading.Thread(target=hammer) for _ in range(10)]
    for thread in threads:
        thread.start()
    from manycore._launch import launch
    children = [launch("operator:is_", b"") for _ in range(980)]
    processes = [context.Process(target=os.getpid) for _ in range(20)]
    for process in processes:
        process.start()
    codes = {child.wait(40).exitcode for child in children}
    for process in processes:
        process.join(40)
    ends.set()
    assert codes == {0}
    assert {process.exitcode for process in processes} == {0}
""",
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_unguarded_script_is_one_clear_error(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        HEAD + "process = context.Process(target=double, args=(1,))\nprocess.start()\nprocess.join()\n"
        "sys.exit(process.exitcode)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(program), method], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "__name__ == " in done.stderr


def test_an_unguarded_script_just_runs(tmp_path: Path) -> None:
    body = (
        "process = context.Process(target=double, args=(4,), result=True)\nprocess.start()\nprint(process.result(20))\n"
    )
    assert run(tmp_path, body) == "8\n"


@pytest.mark.parametrize("state", ["joining", "sleeping", "result"])
def test_ctrl_c_is_one_traceback(state: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    body = f"""
if __name__ == "__main__":
    processes = [started() for _ in range(3)]
    print("ready", flush=True)
    if {state!r} == "joining":
        processes[0].join()
    elif {state!r} == "result":
        context.Process(target=time.sleep, args=(100,), result=True).start()
        time.sleep(100)
    else:
        time.sleep(100)
"""
    program.write_text(HEAD + body, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(program), "zygote"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_sigterm_ends_the_tree(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        HEAD + 'if __name__ == "__main__":\n    p = started()\n    print(p.pid, flush=True)\n    p.join()\n',
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, str(program), "zygote"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.terminate()
    parent.communicate(timeout=20)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    assert poller.poll(5_000)
    os.close(pidfd)
    assert parent.returncode == -signal.SIGTERM
