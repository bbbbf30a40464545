"""Launching: what a child gets, what its parent learns, and what is left when either dies."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from manycore._launch import Certificate, Child, cpu_count, launch, preload
from manycore._launch import handle as handle_module
from manycore._launch import launcher as launcher_module
from manycore._launch import parent as parent_module

HERE = "tests.unit.launch_targets:"


def ask(**options: str) -> dict[str, object]:
    read, write = os.pipe()
    child = launch(HERE + "report", b"x", [write], **options)  # type: ignore[arg-type]
    os.close(write)
    with open(read, encoding="utf-8") as file:
        seen: dict[str, object] = json.load(file)
    assert ended(child).exitcode == 0
    return seen


def ended(child: Child) -> Certificate:
    status = child.wait(30)
    assert status is not None
    return status


class TestWhatAChildGets:
    def test_it_is_a_clean_process_of_its_own(self) -> None:
        seen = ask(title="manycore: a test")
        assert seen["group"]
        assert seen["sigint"]
        assert seen["threads"] == 1
        assert seen["title"] == "manycore: a test"
        assert seen["main"] == []

    def test_directory_environment_path_and_arguments_are_those_of_now(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MANYCORE_TEST_VARIABLE", "now")
        monkeypatch.setattr(sys, "argv", ["program", "argument"])
        monkeypatch.syspath_prepend(str(tmp_path / "lib"))
        seen = ask()
        assert seen["cwd"] == str(tmp_path)
        assert seen["variable"] == "now"
        assert seen["argv"] == ["program", "argument"]
        assert seen["path"] == [os.path.abspath(entry) for entry in sys.path]
        monkeypatch.undo()
        assert ask()["variable"] is None

    def test_the_umask_of_now(self) -> None:
        before = os.umask(0o027)
        try:
            assert ask()["umask"] == 0o027
            os.umask(0o077)
            assert ask()["umask"] == 0o077
        finally:
            os.umask(before)
        assert ask()["umask"] == before

    def test_signals_are_as_documented_whatever_the_parent_has(self) -> None:
        launcher_module.shutdown()  # a zygote that starts while the parent is so
        handled = {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2}
        before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in handled}
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        try:
            seen = ask()["signals"]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for signum, handler in before.items():
                signal.signal(signum, handler)
        assert seen == {
            "SIGINT": signal.SIG_IGN,
            **{signum.name: signal.SIG_DFL for signum in handled},
            "SIGPIPE": signal.SIG_IGN,
            "SIGHUP": signal.getsignal(signal.SIGHUP),
            "blocked": 0,
            "faulthandler": True,
        }

    def test_an_environment_of_any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ask()
        for number in range(3000):
            monkeypatch.setenv(f"MANYCORE_TEST_{number}", "x" * 100)
        monkeypatch.setenv("MANYCORE_TEST_VARIABLE", "large")
        for _ in range(3):
            assert ask()["variable"] == "large"
        monkeypatch.undo()
        assert ask()["variable"] is None

    def test_no_foreign_descriptor(self) -> None:
        inherited = os.open(os.devnull, os.O_RDONLY)
        os.set_inheritable(inherited, True)
        try:
            fds = ask()["fds"]
        finally:
            os.close(inherited)
        assert isinstance(fds, list)
        # standard ones, stacks, lifeline, the keeper's, sys.stdin, the one that was passed, and the listing's own
        assert len(fds) <= 9

    @pytest.mark.parametrize("size", [0, 1, 16 * 1024, 16 * 1024 + 1, 212_992, 5_000_000])
    def test_payload_of_any_size(self, size: int) -> None:
        payload = bytes(i & 0xFF for i in range(256)) * (size // 256 + 1)
        read, write = os.pipe()
        child = launch(HERE + "echo", payload[:size], [write])
        os.close(write)
        with open(read, "rb") as file:
            assert file.read() == payload[:size]
        assert ended(child).exitcode == 0

    def test_standard_output_of_now(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert ended(launch("builtins:print", b"seen")).exitcode == 0
        assert capfd.readouterr().out == "b'seen' []\n"

    def test_the_runtime_is_light(self) -> None:
        launcher_module.shutdown()  # what other tests had it import is not the runtime
        modules = ask()["modules"]
        assert isinstance(modules, list)
        program = "import json,sys; print(json.dumps(sorted(sys.modules)))"
        output = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
        new = set(modules) - set(json.loads(output)) - {"tests.unit.launch_targets"}
        heavy = {"numpy", "asyncio", "concurrent.futures", "multiprocessing", "subprocess", "logging"}
        assert "manycore._launch.worker" in new
        assert not heavy & new


class TestHowItEnds:
    @pytest.mark.parametrize("code", [0, 1, 7, 255])
    def test_exit_code(self, code: int) -> None:
        assert ended(launch(HERE + "exit_with", str(code).encode())).exitcode == code

    def test_system_exit_with_a_message(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert ended(launch(HERE + "leave", b"so be it")).exitcode == 1
        assert capfd.readouterr().err == "so be it\n"

    def test_exception(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert ended(launch(HERE + "fail", b"a reason")).exitcode == 1
        assert capfd.readouterr().err.endswith("ValueError: a reason\n")

    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
    def test_signal(self, signum: int) -> None:
        status = ended(launch(HERE + "die", str(int(signum)).encode()))
        assert status.exitcode == -signum
        assert status.signal_name == signal.Signals(signum).name
        if signum in {signal.SIGSEGV, signal.SIGABRT}:
            assert "in die" in (status.stack or "")

    def test_no_such_function(self, capfd: pytest.CaptureFixture[str]) -> None:
        assert ended(launch("manycore._launch.nowhere:f", b"")).exitcode == 1
        assert "ModuleNotFoundError" in capfd.readouterr().err

    def test_usage_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parent_module, "_REPORT_GRACE_S", 30.0)  # the zygote counts it, when it gets to it
        status = ended(launch(HERE + "exit_with", b"0"))
        assert status.peak_rss_bytes > 1_000_000
        assert status.user_seconds + status.system_seconds > 0
        assert 0 < status.wall_seconds < 30

    def test_on_exit_is_called_once_with_the_status(self) -> None:
        seen: list[tuple[Certificate | None, str]] = []
        called = threading.Event()

        def on_exit(child: Child) -> None:
            seen.append((child.status, threading.current_thread().name))
            called.set()

        child = launch(HERE + "exit_with", b"3", on_exit=on_exit)
        assert called.wait(30)
        assert seen == [(ended(child), "manycore-reaper")]

    def test_sentinel_is_ready_at_the_end(self) -> None:
        read, write = os.pipe()
        child = launch(HERE + "wait_for_end", b"", [read])
        os.close(read)
        poller = select.poll()
        poller.register(child.sentinel, select.POLLIN)
        assert not poller.poll(0)
        os.close(write)
        assert poller.poll(30_000)
        assert child.status is not None
        assert child.status.exitcode == 0


class TestEnding:
    def test_stopped_child_is_killed(self) -> None:
        read, write = os.pipe()
        child = launch(HERE + "wait_for_end", b"", [read])
        os.close(read)
        child.signal(signal.SIGSTOP)
        child.kill()
        assert ended(child).exitcode == -signal.SIGKILL
        os.close(write)

    def test_terminate_escalates(self) -> None:
        read, write = os.pipe()
        ready, said = os.pipe()
        child = launch(HERE + "ignore_term", b"", [said, read])
        os.close(said)
        assert os.read(ready, 1) == b"r"
        child.terminate(grace=0.1)
        assert ended(child).exitcode == -signal.SIGKILL
        for fd in (read, write, ready):
            os.close(fd)

    def test_its_own_children_end_with_it(self) -> None:
        read, write = os.pipe()
        child = launch(HERE + "fork_and_wait", b"", [write])
        os.close(write)
        grandchild = int(os.read(read, 16))
        child.kill()
        assert ended(child).exitcode == -signal.SIGKILL
        assert os.read(read, 1) == b""  # every holder of the pipe is gone
        os.close(read)
        assert_gone(grandchild)


def assert_gone(pid: int, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        select.poll().poll(5)
    pytest.fail(f"process {pid} is alive")


class TestManyAtOnce:
    @pytest.mark.timeout(120)
    def test_more_requests_than_the_socket_takes(self) -> None:
        children = [launch(HERE + "exit_with", b"5", [0]) for _ in range(400)]
        assert {ended(child).exitcode for child in children} == {5}

    def test_threads_may_launch_together(self) -> None:
        codes: list[int | None] = []

        def start() -> None:
            codes.extend([ended(launch(HERE + "exit_with", b"4")).exitcode for _ in range(10)])

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [4] * 40


class TestZygoteDies:
    def test_it_is_replaced_and_its_children_go_on(self) -> None:
        read, write = os.pipe()
        child = launch(HERE + "wait_for_end", b"", [read])
        os.close(read)
        assert child.wait_started(30)
        zygote = launcher_module.current()._zygote
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        assert ended(launch(HERE + "exit_with", b"6")).exitcode == 6
        assert child.status is None
        os.close(write)
        assert ended(child).exitcode in {0, None}

    def test_requests_on_their_way_are_given_to_the_next(self) -> None:
        for _ in range(5):
            children = [launch(HERE + "exit_with", b"8") for _ in range(10)]
            zygote = launcher_module.current()._zygote
            assert zygote is not None
            os.kill(zygote.pid, signal.SIGKILL)
            assert {ended(child).exitcode for child in children} <= {8, None}

    def test_one_that_somebody_kills_again_and_again_is_not_given_up_as_if_it_failed(self) -> None:
        """A process that is killed closes its socket before it can be reaped, so before anyone knows why it ended."""
        child = launch(HERE + "exit_with", b"3")
        killed: set[int] = set()
        while len(killed) < 8 and not child.started:
            zygote = launcher_module.current()._zygote
            if zygote is not None and zygote.pid not in killed:
                killed.add(zygote.pid)
                os.kill(zygote.pid, signal.SIGKILL)
        assert ended(child).exitcode in {3, None}
        zygote = object.__new__(handle_module.Zygote)
        zygote.pidfd, zygote.silent_since, zygote.dead_since = 9, 0.0, 0.0
        assert zygote.over_at() is None
        zygote.silent_since = 5.0
        assert zygote.over_at() == pytest.approx(5.0 + handle_module._STATUS_S)
        zygote.dead_since = 5.1
        assert zygote.over_at() == 5.0

    def test_a_process_that_runs_is_not_started_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a zygote dies with requests unread, the kernel tells its parent of a reset before what it had sent."""
        monkeypatch.setattr(handle_module, "_DRAIN_S", 60.0)
        assert ended(launch(HERE + "exit_with", b"0")).exitcode == 0
        launcher = launcher_module.current()
        zygote = launcher._zygote
        assert zygote is not None
        reads = threading.Event()
        receive = launcher._receive
        monkeypatch.setattr(launcher, "_receive", lambda *them: reads.is_set() and receive(*them))
        read, write = os.pipe()
        monkeypatch.setenv("ASKS", "the zygote")  # not a spare, which may end, and nobody would hear that
        first = launch(HERE + "echo", b"ran", [write])
        os.close(write)
        assert os.read(read, 3) == b"ran"  # so STARTED is on its way, and nobody has read it
        os.kill(zygote.pid, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, zygote.pidfd, os.WSTOPPED | os.WNOWAIT)
        second = launch(HERE + "exit_with", b"6")
        pidfd = os.dup(zygote.pidfd)
        os.kill(zygote.pid, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        os.close(pidfd)
        reads.set()
        assert ended(second).exitcode == 6
        assert ended(first).exitcode in {0, None}
        assert os.read(read, 3) == b""
        os.close(read)


def test_fork_of_the_parent_starts_a_zygote_of_its_own() -> None:
    assert ended(launch(HERE + "exit_with", b"0")).exitcode == 0
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = ended(launch(HERE + "exit_with", b"9")).exitcode or 0
            launcher_module.shutdown()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert ended(launch(HERE + "exit_with", b"2")).exitcode == 2


def test_preload() -> None:
    launcher_module.shutdown()
    preload("colorsys")
    modules = ask()["modules"]
    assert isinstance(modules, list)
    assert "colorsys" in modules


@pytest.mark.parametrize("flags", [["-I"], ["-S"], ["-I", "-S"], ["-O"], ["-X", "utf8"], ["-b"], ["-X", "dev"]])
def test_the_interpreters_flags(flags: list[str]) -> None:
    source = str(Path(launcher_module.__file__).parents[2])
    program = f"""
import sys
sys.path.append({source!r})
from manycore._launch import launch
print(launch("sys:exit_", b"").wait(30).exitcode, tuple(sys.flags))
sys.stdout.flush()
launch("manycore._launch.wire:x", b"").wait(30)
"""
    program = program.replace("sys:exit_", "operator:is_")
    result = subprocess.run(
        [sys.executable, *flags, "-c", program], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.startswith("0 "), result.stderr


def test_cpu_count_is_at_most_the_affinity() -> None:
    assert 1 <= cpu_count() <= len(os.sched_getaffinity(0))


def test_too_many_descriptors() -> None:
    with pytest.raises(ValueError, match="240"):
        launch(HERE + "exit_with", b"0", array.array("i", [0] * 300))
