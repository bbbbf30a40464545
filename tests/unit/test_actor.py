"""Actors: calls in order, errors with their tracebacks, and after a death every call has an end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import manycore
from manycore import Actor, ActorClosed, ActorDied, Event

KILLS = int(os.environ.get("MANYCORE_ACTOR_KILLS", "8"))
SOON = 5.0  # seconds


@pytest.fixture(scope="module", autouse=True)
def _no_tracker_left() -> Iterator[None]:
    """Ends the standard library's process that comes with "spawn"."""
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


class Counter:
    """What most tests call."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.other: Any = None

    def add(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def fail(self) -> None:
        raise KeyError("on purpose")

    def leave(self) -> None:
        raise SystemExit(3)

    def die(self, code: int = 3) -> None:
        os._exit(code)

    def process_id(self) -> int:
        return os.getpid()

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def pause(self, begun: Any, may_go_on: Any) -> Any:
        begun.set()
        return may_go_on.wait(SOON)

    def echo(self, value: Any) -> Any:
        return value

    def opaque(self) -> Any:
        return threading.Lock()

    def keep(self, other: Any) -> None:
        self.other = other

    def forward(self, by: int) -> int:
        result: int = self.other.add(by).result(SOON)
        return result

    def note(self, path: str, number: int) -> int:
        with open(path, "a") as file:
            file.write(f"{number}\n")
        return number


class Unmakeable:
    """Raises where it is made."""

    def __init__(self) -> None:
        raise ValueError("cannot be made")


class Talker:
    """With async methods."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.event: asyncio.Event | None = None

    async def wait(self) -> str:
        self.event = asyncio.Event()
        self.said.append("waits")
        await self.event.wait()
        return "woken"

    def wake(self) -> list[str]:
        assert self.event is not None
        self.event.set()
        return self.said

    async def fail(self) -> None:
        raise KeyError("async")


def test_calls_are_performed_in_order() -> None:
    with Actor(Counter, 10) as counter:
        futures = [counter.add(1) for _ in range(2000)]
        assert [future.result(SOON) for future in futures] == list(range(11, 2011))
        assert counter.attribute("value").result(SOON) == 2010
        assert counter.call("add", by=5).result(SOON) == 2015
        assert counter.process_id().result(SOON) == counter.pid != os.getpid()
        with pytest.raises(AttributeError):
            counter.nothing().result(SOON)
        with pytest.raises(AttributeError):
            counter._private


def test_errors_come_back_with_their_tracebacks() -> None:
    with Actor(Counter) as counter:
        for _ in range(2):
            with pytest.raises(KeyError, match="on purpose") as caught:
                counter.fail().result(SOON)
            assert "in fail" in str(caught.value.__cause__)
            assert "fail() of actor Counter" in str(caught.value.__cause__)
        with pytest.raises(SystemExit):
            counter.leave().result(SOON)
        with pytest.raises(manycore.TaskPicklingError, match=r"args\[0\]"):
            counter.echo([threading.Lock()])
        with pytest.raises(manycore.ResultPicklingError):
            counter.opaque().result(SOON)
        assert isinstance(counter.fail().exception(SOON), KeyError)
        assert counter.add().result(SOON) == 1


def test_what_cannot_be_made_says_so_here() -> None:
    with pytest.raises(ValueError, match="cannot be made") as caught:
        Actor(Unmakeable)
    assert "__init__" in str(caught.value.__cause__)
    with pytest.raises(ActorDied, match="exit code 7"):
        Actor(os._exit, 7)
    with pytest.raises(TypeError):
        Actor(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="restart"):
        Actor(Counter, restart="sometimes")  # type: ignore[arg-type]


def test_large_values_and_code_travel() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(1 << 20)
    factor = 3
    with Actor(Counter) as counter:
        assert (counter.echo(array).result(SOON) == array).all()
        assert counter.echo(lambda value: value * factor).result(SOON)(5) == 15
        assert counter.echo(b"x" * 5_000_000).result(SOON) == b"x" * 5_000_000


def test_futures_are_those_of_concurrent_futures() -> None:
    with Actor(Counter) as counter:
        futures: list[Any] = [counter.add() for _ in range(20)]
        done, left = concurrent.futures.wait(futures, SOON)
        assert len(done) == 20
        assert not left
        assert sorted(future.result() for future in concurrent.futures.as_completed(futures, SOON)) == list(
            range(1, 21)
        )
        begun, may_go_on = Event(), Event()
        future = counter.pause(begun, may_go_on)
        assert begun.wait(SOON)
        with pytest.raises(TimeoutError):
            future.result(0.001)
        assert not future.cancel()
        may_go_on.set()
        assert future.result(SOON) is True
        told: list[int] = []
        heard = threading.Event()

        def then(future: Any) -> None:
            told.append(counter.add().result(SOON))  # a callback may call, and wait
            heard.set()

        counter.add().add_done_callback(then)
        assert heard.wait(SOON)
        assert told == [22]
        slow = counter.sleep(0.01)
        deadline = time.monotonic() + SOON
        while not slow.done():
            assert time.monotonic() < deadline


def test_futures_can_be_awaited() -> None:
    async def run(counter: Any) -> list[int]:
        one = await counter.add()
        return [one, *await asyncio.gather(*(counter.add() for _ in range(10)))]

    with Actor(Counter) as counter:
        assert asyncio.run(run(counter)) == list(range(1, 12))


def test_async_methods_let_others_go_on() -> None:
    with Actor(Talker) as talker:
        waiting = [talker.wait()]
        assert talker.wake().result(SOON) == ["waits"]
        assert waiting[0].result(SOON) == "woken"
        with pytest.raises(KeyError, match="async") as caught:
            talker.fail().result(SOON)
        assert "in fail" in str(caught.value.__cause__)


def test_threads_wait_side_by_side() -> None:
    """Each gets its own result as soon as it is there, whoever takes it from the queue."""
    with Actor(Counter) as counter:
        totals: list[int] = []

        def call() -> None:
            totals.extend(counter.add().result(SOON) for _ in range(200))

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert sorted(totals) == list(range(1, 801))


def use(counter: Any, count: int) -> list[int]:
    return [counter.add().result(SOON) for _ in range(count)]


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn"])
def test_an_actor_goes_to_other_processes(method: str) -> None:
    context = manycore.get_context(method)
    with Actor(Counter) as counter:
        assert counter.add().result(SOON) == 1
        process = context.Process(target=use, args=(counter, 50))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert counter.add().result(SOON) == 52


def test_a_pools_workers_call_it() -> None:
    with Actor(Counter) as counter, manycore.Pool(2) as pool:
        results = pool.starmap(use, [(counter, 25)] * 4)
        assert sorted(total for each in results for total in each) == list(range(1, 101))
        assert all(each == sorted(each) for each in results)


def test_an_actor_calls_another() -> None:
    with Actor(Counter) as one, Actor(Counter) as other:
        one.keep(other).result(SOON)
        assert one.forward(5).result(SOON) == 5
        assert other.add(1).result(SOON) == 6


def test_the_fork_of_a_process_calls_by_itself() -> None:
    with Actor(Counter) as counter:
        before = counter.add()
        pid = os.fork()
        if pid == 0:
            try:
                before.result(SOON)
            except ActorClosed:
                os._exit(counter.add().result(SOON))
            os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert before.result(SOON) == 1
        assert counter.add().result(SOON) == 3


def test_close_answers_what_was_called() -> None:
    counter = Actor(Counter)
    futures = [counter.add() for _ in range(500)]
    counter.close()
    assert [future.result(SOON) for future in futures] == list(range(1, 501))
    with pytest.raises(ActorClosed):
        counter.add()
    counter.close()
    stuck = Actor(Counter)
    left = stuck.sleep(60)
    stuck.close(timeout=0.05)
    with pytest.raises(ActorClosed):
        left.result(SOON)


def test_terminate_fails_what_is_left() -> None:
    counter = Actor(Counter)
    futures = [counter.sleep(60), counter.add()]
    counter.terminate()
    for future in futures:
        with pytest.raises(ActorClosed):
            future.result(SOON)
    with manycore.Pool(1) as pool, Actor(Counter) as counter, pytest.raises(RuntimeError, match="launched"):
        pool.apply(Actor.close, (counter,))


def test_a_forgotten_actor_ends() -> None:
    future = Actor(Counter).process_id()
    pid = future.result(SOON)
    deadline = time.monotonic() + SOON
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline


def test_a_death_fails_what_was_called() -> None:
    counter = Actor(Counter)
    assert counter.add().result(SOON) == 1
    futures = [counter.add(), counter.die(), counter.add(), counter.add()]
    assert futures[0].result(SOON) == 2
    for future in futures[1:]:
        with pytest.raises(ActorDied, match="exit code 3") as caught:
            future.result(SOON)
        assert caught.value.certificate.exitcode == 3
    with pytest.raises(ActorDied):
        counter.add()
    assert issubclass(ActorDied, manycore.WorkerDied)
    counter.close()


def test_a_death_is_told_to_those_who_wait_without_waiting() -> None:
    counter = Actor(Counter)
    future = counter.sleep(60)
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    began = time.monotonic()
    os.kill(counter.pid, signal.SIGKILL)
    assert told.wait(SOON)
    assert time.monotonic() - began < 2
    counter.close()


def test_a_restart_loses_the_call_in_hand_alone() -> None:
    with Actor(Counter, 100, restart="on-failure") as counter:
        futures = [counter.add(), counter.die(), *(counter.add() for _ in range(10))]
        assert futures[0].result(SOON) == 101
        with pytest.raises(ActorDied, match="exit code 3"):
            futures[1].result(SOON)
        assert [future.result(SOON) for future in futures[2:]] == list(range(101, 111))
        assert counter.restarts == 1
        with pytest.raises(ActorDied):
            counter.die(0).result(SOON)  # an exit in order is no failure
        with pytest.raises(ActorDied):
            counter.add()


def test_a_restart_has_a_budget() -> None:
    counter = Actor(Counter, restart="always", max_restarts=2, within=60)
    for code in (0, 1):
        with pytest.raises(ActorDied, match=f"exit code {code}"):
            counter.die(code).result(SOON)
        assert counter.add().result(SOON) == 1
    futures = [counter.die(), counter.add()]
    for future in futures:
        with pytest.raises(ActorDied, match="started again 2 times"):
            future.result(SOON)
    counter.close()


def test_a_caller_that_waits_for_room_is_told_of_the_death() -> None:
    counter = Actor(Counter, max_pending=2)
    counter.sleep(60)
    raised: list[BaseException] = []

    def fill() -> None:
        try:
            while True:
                counter.add()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    while not counter._handle[0].full():
        pass
    os.kill(counter.pid, signal.SIGKILL)
    thread.join(SOON)
    assert not thread.is_alive()
    assert isinstance(raised[0], ActorDied)
    counter.close()


def report(counter: Any, end: Any) -> None:
    end.send(counter.add().result(SOON))
    try:
        counter.die().result(SOON)
    except BaseException as error:
        end.send(type(error).__name__)
    end.send(end.recv() and counter.add().result(SOON))


def test_other_processes_are_told_of_deaths() -> None:
    here, there = manycore.Pipe()
    with Actor(Counter, restart="always") as counter:
        process = manycore.Process(target=report, args=(counter, there))
        process.start()
        assert here.recv() == 1
        assert here.poll(SOON)
        assert here.recv() == "ActorDied"
        here.send(True)
        assert here.poll(SOON)
        assert here.recv() == 1  # of the successor
        process.join()


def launch_and_hand_over(end: Any) -> None:
    counter = Actor(Counter)
    end.send(counter)
    end.recv()


def test_the_launchers_death_is_noticed() -> None:
    here, there = manycore.Pipe()
    process = manycore.Process(target=launch_and_hand_over, args=(there,))
    process.start()
    counter = here.recv()
    assert counter.add().result(SOON) == 1
    future = counter.sleep(60)
    process.kill()
    with pytest.raises(ActorDied):
        future.result(SOON)
    process.join()


@pytest.mark.timeout(60 + 2 * KILLS)
@pytest.mark.parametrize("restart", ["never", "always"])
def test_kills_at_random(restart: Any, rng: random.Random, tmp_path: Path) -> None:
    """Each call has an end, none is performed twice, and what was answered was performed; in order."""
    for run in range(KILLS):
        path = str(tmp_path / f"ledger {run}")
        counter = Actor(Counter, restart=restart, max_restarts=100)
        pid = counter.pid
        killer = threading.Timer(rng.uniform(0, 0.03), os.kill, (pid, signal.SIGKILL))
        killer.start()
        futures: list[Any] = []
        try:
            futures.extend(counter.note(path, number) for number in range(1000))
        except ActorDied:
            assert restart == "never"
        answered = []
        for number, future in enumerate(futures):
            try:
                assert future.result(SOON) == number
                answered.append(number)
            except ActorDied:
                pass
        killer.join()
        performed = list(map(int, Path(path).read_text().split())) if os.path.exists(path) else []
        assert performed == sorted(set(performed))
        assert set(answered) <= set(performed)
        assert len(performed) - len(answered) <= 1
        if restart == "always":
            assert len(answered) >= 999
        counter.close()


class Forker:
    """Forks, and does not care who it is afterwards."""

    def __init__(self, at_once: bool = False) -> None:
        self.child = os.fork() if at_once else 0

    def fork(self) -> int:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return 0

    def fork_and_fail(self) -> int:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        raise ValueError("in the child")

    def reap(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def test_the_fork_of_an_actor_answers_nobody() -> None:
    with manycore.Actor(Forker) as actor:
        assert [actor.fork().result(20) for _ in range(20)] == [0] * 20
        assert [actor.fork_and_fail().result(20) for _ in range(3)] == [1] * 3
    with manycore.Actor(Forker, True) as actor:
        assert actor.reap().result(20) == 0
