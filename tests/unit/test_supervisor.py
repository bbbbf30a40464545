"""`supervise` and `Supervisor`: what is started again, and when no more."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import manycore
from manycore import Supervisor, supervise


def count_and_fail(path: str, enough: int) -> None:
    """Fails until it has run `enough` times."""
    with open(path, "a", encoding="utf-8") as file:
        file.write("x")
    if len(Path(path).read_text(encoding="utf-8")) < enough:
        raise ValueError("not yet")


def note_and_stay(path: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    threading.Event().wait()


def succeed() -> None:
    pass


def lines(path: Path, count: int) -> list[int]:
    """The pids in a file, once there are so many."""
    waiting = threading.Event()
    for _ in range(3000):
        found = path.read_text(encoding="utf-8").split() if path.exists() else []
        if len(found) >= count:
            return [int(pid) for pid in found]
        waiting.wait(0.01)
    raise AssertionError(found)


def test_it_is_started_again_until_it_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with supervise(count_and_fail, str(path), 3) as supervisor:
        assert supervisor.wait(30)
    assert path.read_text(encoding="utf-8") == "xxx"
    assert supervisor.restarts == 2


def test_the_budget_ends_in_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    supervisor = supervise(count_and_fail, str(path), 1000, max_restarts=2, within=1000)
    with pytest.raises(manycore.RestartLimitExceeded, match="more than 2 restarts in 1000 s") as caught:
        supervisor.wait(30)
    assert str(caught.value).startswith(
        f"count_and_fail-1 (pid {supervisor.processes[0].pid}) ended (exit code 1) and "
    )
    assert isinstance(caught.value.__cause__, ValueError)
    assert path.read_text(encoding="utf-8") == "xxx"
    supervisor.stop()


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_last_end_is_said_in_words() -> None:
    with pytest.raises(manycore.RestartLimitExceeded, match=r"ended \(SIGKILL\)") as caught:
        supervise(kill_itself, max_restarts=0).wait(30)
    assert isinstance(caught.value.__cause__, manycore.WorkerDied)


def test_always_and_never(tmp_path: Path) -> None:
    supervisor = supervise(succeed, restart="always", max_restarts=3, within=1000)
    with pytest.raises(manycore.RestartLimitExceeded):
        supervisor.wait(30)
    assert supervisor.restarts == 3
    supervisor.stop()
    path = tmp_path / "runs"
    with supervise(count_and_fail, str(path), 2, restart="never") as supervisor:
        assert supervisor.wait(30)
    assert path.read_text(encoding="utf-8") == "x"


@pytest.mark.parametrize("strategy", ["one_for_one", "all_for_one"])
def test_strategies(strategy: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    supervisor = Supervisor(strategy=strategy)
    try:
        for path in paths:
            supervisor.start(note_and_stay, str(path))
        before = [lines(path, 1)[0] for path in paths]
        os.kill(before[0], signal.SIGKILL)
        after = lines(paths[0], 2)
        assert after[0] == before[0]
        if strategy == "all_for_one":
            assert lines(paths[1], 2)[1] != before[1]
        else:
            assert supervisor.processes[1].is_alive()
            assert lines(paths[1], 1) == [before[1]]
    finally:
        supervisor.stop()
    assert not any(process.is_alive() for process in supervisor.processes)


def test_backoff_delays(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with supervise(count_and_fail, str(path), 2, backoff=0.2) as supervisor:
        assert not supervisor.wait(0.1)
        assert supervisor.wait(30)


def test_backoff_may_be_asked(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    asked: list[int] = []

    def backoff(count: int) -> float:
        asked.append(count)
        return 0.0

    with supervise(count_and_fail, str(path), 4, backoff=backoff) as supervisor:
        assert supervisor.wait(30)
    assert asked == [1, 2, 3]
    assert path.read_text(encoding="utf-8") == "xxxx"


def no_number(_count: int) -> float:
    return "soon"  # type: ignore[return-value]


def raise_key_error(count: int) -> float:
    raise KeyError(count)


def leave(_count: int) -> float:
    sys.exit("enough")


@pytest.mark.parametrize(
    ("backoff", "error"), [(raise_key_error, KeyError), (no_number, TypeError), (leave, SystemExit)]
)
def test_an_error_of_backoff_ends_it(backoff: Any, error: Any, tmp_path: Path) -> None:
    sibling = tmp_path / "sibling"
    supervisor = Supervisor(backoff=backoff)
    supervisor.start(note_and_stay, str(sibling))
    lines(sibling, 1)
    supervisor.start(count_and_fail, str(tmp_path / "runs"), 1000)
    with pytest.raises(error):
        supervisor.wait(30)
    assert supervisor.restarts == 0
    assert not any(process.is_alive() for process in supervisor.processes)
    supervisor.stop()


def test_an_error_of_a_further_start_ends_it(tmp_path: Path) -> None:
    """Nothing waits for a process that was never started."""

    class Context:
        made = 0

        def Process(self, **options: Any) -> Any:  # noqa: N802
            self.made += 1
            if self.made == 2:
                options["args"] = (threading.Lock(),)
            return manycore.Process(**options)

    supervisor = supervise(count_and_fail, str(tmp_path / "runs"), 1000, context=Context())
    with pytest.raises(manycore.TaskPicklingError):
        supervisor.wait(30)
    assert supervisor.restarts == 0
    assert supervisor.processes[0].exitcode == 1
    supervisor.stop()


@pytest.mark.parametrize("method", ["zygote", "fork"])
def test_processes_may_be_joined_and_closed(method: str, tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / str(number)
        with Supervisor(context=manycore.get_context(method)) as supervisor:
            process = supervisor.start(count_and_fail, str(path), 2)
            process.join()
            process.close()
            assert supervisor.wait(30)
        assert path.read_text(encoding="utf-8") == "xx"


def test_of_closed_processes_the_failure_is_known(tmp_path: Path) -> None:
    expected = pytest.raises(manycore.RestartLimitExceeded, match="exit code 1")
    with expected as caught, Supervisor(max_restarts=0) as supervisor:
        other = supervisor.start(succeed)
        other.join()
        other.close()
        process = supervisor.start(count_and_fail, str(tmp_path / "runs"), 2)
        process.join()
        process.close()
        supervisor.wait(30)
    assert isinstance(caught.value.__cause__, ValueError)


def test_stop(tmp_path: Path) -> None:
    path = tmp_path / "runs"
    supervisor = supervise(note_and_stay, str(path))
    lines(path, 1)
    supervisor.stop()
    assert supervisor.wait(0)
    assert supervisor.processes[0].exitcode == -signal.SIGTERM
    with pytest.raises(RuntimeError, match="stopped"):
        supervisor.start(succeed)


def test_wrong_words() -> None:
    with pytest.raises(ValueError, match="restart must be"):
        supervise(succeed, restart="sometimes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strategy must be"):
        Supervisor(strategy="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_restarts": -1}, ValueError),
        ({"max_restarts": 1.5}, TypeError),
        ({"within": 0}, ValueError),
        ({"within": -1}, ValueError),
        ({"within": "5"}, TypeError),
        ({"backoff": -0.1}, ValueError),
        ({"backoff": float("nan")}, ValueError),
        ({"backoff": "1"}, TypeError),
        ({"backoff": None}, TypeError),
        ({"grace": -1}, ValueError),
        ({"grace": None}, TypeError),
    ],
)
def test_wrong_numbers(options: Any, error: Any) -> None:
    with pytest.raises(error, match=f"^{next(iter(options))} must be"):
        supervise(succeed, **options)
    with pytest.raises(error, match=f"^{next(iter(options))} must be"):
        Supervisor(**options)


def test_a_wait_is_interrupted_at_any_of_its_steps() -> None:
    """With the interrupt's own exception, and the lock is given back."""
    left = step = 0
    taken: list[int] = []

    def count(_frame: FrameType, _event: str, _arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return count

    def take() -> None:
        if supervisor._lock.acquire(timeout=5):
            supervisor._lock.release()
            taken.append(step)

    with supervise(time.sleep, 600) as supervisor:
        while left <= 0:
            step += 1
            left = step
            before = sys.gettrace()
            try:
                sys.settrace(count)
                assert not supervisor.wait(0.001)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            other = threading.Thread(target=take)
            other.start()
            other.join()
            assert taken[-1:] == [step]
        supervisor.stop()
    assert step > 20
