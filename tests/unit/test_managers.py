"""Managers: the standard interface over our processes, and one typed error at once when the manager is dead."""

from __future__ import annotations

import multiprocessing.managers
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import pytest

import manycore
from manycore import connection, managers

RUNS = int(os.environ.get("MANYCORE_MANAGER_KILLS", "8"))
SOON = 5.0  # seconds; kill to error takes milliseconds


@pytest.fixture(scope="module", autouse=True)
def _no_tracker_left() -> Iterator[None]:
    """Ends the standard library's process that names of shared memory are registered with."""
    yield
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


@pytest.fixture
def manager() -> Iterator[Any]:
    made = manycore.Manager()
    yield made
    made.shutdown()


def in_threads(*runs: Callable[[], object]) -> None:
    """All to their ends, within a bound; what one raises is raised."""
    raised: list[BaseException] = []

    def guarded(run: Callable[[], object]) -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


class Things:
    """What the tests register."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, by: int) -> int:
        self.value += by
        return self.value

    def leave(self) -> None:
        raise SystemExit(3)

    def fail(self) -> None:
        raise ValueError("on purpose")

    def opaque(self) -> Any:
        return threading.Lock()

    def unloadable(self) -> Any:
        return Unloadable()

    def slow(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def numbers(self) -> Iterator[int]:
        yield from range(3)

    def pid(self) -> int:
        return os.getpid()


class Unloadable:
    """Cannot be rebuilt."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return int, ("no number",)


class Unpicklable:
    """Cannot be sent."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no")


class Manager(managers.BaseManager):
    """With our type."""


Manager.register("Things", Things, method_to_typeid={"numbers": "Iterator"})
Manager.register("Iterator", proxytype=managers.IteratorProxy, create_method=False)


def test_the_types_of_proxies(manager: Any) -> None:
    values = manager.dict(a=1)
    assert isinstance(values, managers.DictProxy)
    assert isinstance(values, multiprocessing.managers.DictProxy)
    assert sorted(values) == ["a"]
    assert dict(values) == values.copy() == {"a": 1}
    numbers = manager.list([1])
    numbers += [2]
    numbers *= 2
    assert numbers[:] == [1, 2, 1, 2]
    space = manager.Namespace(x=1)
    space.y = values
    space.y["b"] = 2
    assert values["b"] == 2
    lock, event, number = manager.Lock(), manager.Event(), manager.Value("i", 3)
    with lock:
        assert not lock.acquire(False)
    event.set()
    assert event.wait(0)
    number.value += 1
    assert number.value == 4
    with manager.Pool(1) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]


def use(values: Any, key: str) -> None:
    values[key] = [name for name in values]  # noqa: C416  (an iterator's proxy, in a process without the manager)


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn"])
def test_a_proxy_goes_to_other_processes(method: str) -> None:
    context = manycore.get_context(method)
    with context.Manager() as manager:
        values = manager.dict(first=0)
        process = context.Process(target=use, args=(values, "second"))
        process.start()
        process.join()
        assert dict(values) == {"first": 0, "second": ["first"]}


@pytest.mark.parametrize(
    ("server", "client"),
    [(Manager, multiprocessing.managers.BaseManager), (multiprocessing.managers.BaseManager, managers.BaseManager)],
)
def test_the_other_side_may_be_the_standard_librarys(server: Any, client: Any) -> None:
    class Server(server):  # type: ignore[misc]
        pass

    class Client(client):  # type: ignore[misc]
        pass

    shared = Things(5)
    Server.register("get", lambda: shared)
    Client.register("get")
    held = Server(("127.0.0.1", 0), authkey=b"key").get_server()
    held.stop_event = threading.Event()
    threading.Thread(target=held.accepter, daemon=True).start()
    remote = Client(held.address, authkey=b"key")
    remote.connect()
    assert remote.get().add(2) == 7
    with pytest.raises(manycore.AuthenticationError):
        Client(held.address, authkey=b"another").connect()
    held.stop_event.set()
    connection.Client(held.address).close()  # for the accepter to look
    held.listener.close()


def test_errors_come_from_there() -> None:
    with Manager() as manager:
        things = manager.Things()
        with pytest.raises(ValueError, match="on purpose") as caught:
            things.fail()
        assert "in fail" in caught.value.__notes__[0]
        with pytest.raises(SystemExit):  # and not the end of the connection
            things.leave()
        with pytest.raises(managers.RemoteError, match="pickle"):
            things.opaque()
        with pytest.raises(ValueError, match="no number"):
            things.unloadable()
        with pytest.raises(managers.RemoteError, match="no number"):
            things.add(Unloadable())
        with pytest.raises(RuntimeError, match="no"):
            things.add(Unpicklable())
        assert list(things.numbers()) == [0, 1, 2]
        assert things.add(1) == 1  # the connection is as good as before


def test_an_interrupted_call_leaves_no_answer_to_the_next() -> None:
    class Interrupt(Exception):
        pass

    def interrupt(_signum: int, _frame: object) -> None:
        raise Interrupt

    with Manager() as manager:
        things = manager.Things()
        before = signal.signal(signal.SIGALRM, interrupt)
        left = 0.0
        try:
            with pytest.raises(Interrupt):
                left = signal.setitimer(signal.ITIMER_REAL, 0.2)[0]
                things.slow(3.0)
        finally:
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, left)
        assert things.add(7) == 7


def call_until_dead(values: Any) -> None:
    with pytest.raises(manycore.ManagerDied):
        while True:
            values.append(1)


def test_all_callers_of_a_dead_manager_get_one_error(manager: Any) -> None:
    """Callers between calls, in a call that waits in the manager, and that come afterwards; each a ManagerDied."""
    values, items, lock = manager.list(), manager.Queue(), manager.Lock()
    lock.acquire()

    def waits(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with pytest.raises(manycore.ManagerDied):
                call()

        return run

    def kill() -> None:
        while len(values) < 50:
            pass
        manager._process.kill()

    began = time.monotonic()
    callers = [lambda: call_until_dead(values)] * 2
    in_threads(*callers, waits(items.get), waits(lock.acquire), waits(lambda: items.get(True, 60)), kill)
    assert time.monotonic() - began < SOON
    for late in (lambda: values[0], lambda: manager.dict(), lambda: items.put(1), manager._number_of_objects):
        with pytest.raises(manycore.ManagerDied):
            late()
    for kind in (EOFError, ConnectionError, OSError, manycore.ProcessError):
        with pytest.raises(kind):
            values.append(1)
    manager.shutdown()


def report_death(values: Any, end: Any) -> None:
    try:
        end.send("ready")
        while True:
            values.append(1)
    except manycore.ManagerDied:
        end.send("died")


def test_callers_in_other_processes_get_it_too(manager: Any) -> None:
    values = manager.list()
    here, there = manycore.Pipe()
    process = manycore.Process(target=report_death, args=(values, there))
    process.start()
    there.close()
    assert here.recv() == "ready"
    manager._process.kill()
    assert here.poll(SOON)
    assert here.recv() == "died"
    process.join()


@pytest.mark.timeout(60 + RUNS)
def test_death_at_any_moment(rng: random.Random) -> None:
    """A kill at a random moment of creating proxies, using, sending and dropping them: that error or none."""
    for _ in range(RUNS):
        manager = manycore.Manager()
        delay = rng.uniform(0, 0.05)
        killer = threading.Timer(delay, manager._process.kill)

        def work(manager: Any = manager) -> None:
            while True:
                values = manager.list([1] * 1000)
                values.append(manager.dict())
                values[:10]
                list(manager.dict(a=1))

        def run(work: Callable[[], None] = work, delay: float = delay) -> None:
            with pytest.raises(manycore.ManagerDied):
                work()
            assert delay >= 0

        killer.start()
        in_threads(run, run)
        killer.join()
        manager.shutdown()


def test_shutdown_of_a_stopped_manager_is_bounded() -> None:
    manager = managers.SyncManager(shutdown_timeout=0.2)
    manager.start()
    values = manager.list([1])
    os.kill(manager._process.pid, signal.SIGSTOP)
    began = time.monotonic()
    manager.shutdown()
    assert time.monotonic() - began < SOON
    with pytest.raises(manycore.ManagerDied):
        values.append(2)


def test_a_manager_that_dies_before_it_serves() -> None:
    manager = managers.SyncManager()
    with pytest.raises(manycore.ManagerDied, match="exit code 7"):
        manager.start(initializer=os._exit, initargs=(7,))


def few_descriptors(room: int) -> None:
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, used + room))


def test_a_server_without_descriptors_waits_for_some() -> None:
    manager = Manager()
    manager.start(initializer=few_descriptors, initargs=(6,))
    things = manager.Things()
    barrier = threading.Barrier(12)

    def call() -> None:
        barrier.wait(SOON)
        for _ in range(3):
            assert things.add(0) == 0
        things._tls.connection.close()

    in_threads(*[call] * 12)
    with open(f"/proc/{manager._process.pid}/stat") as file:
        ticks = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    assert ticks / os.sysconf("SC_CLK_TCK") < SOON  # it did not spin
    manager.shutdown()


def fork_and_stay() -> int:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    return pid


class Forking(managers.BaseManager):
    """Whose objects fork."""


Forking.register("fork", lambda: Forker())


class Forker:
    def fork(self) -> int:
        return fork_and_stay()

    def slow(self) -> None:
        time.sleep(60)


def test_a_forked_grandchild_does_not_hide_the_death() -> None:
    manager = Forking()
    manager.start()
    forker = manager.fork()
    pid = forker.fork()
    try:
        killer = threading.Timer(0.2, manager._process.kill)
        killer.start()
        began = time.monotonic()
        with pytest.raises(manycore.ManagerDied):
            forker.slow()
        with pytest.raises(manycore.ManagerDied):
            manager.fork()
        assert time.monotonic() - began < SOON
    finally:
        os.kill(pid, signal.SIGKILL)
        manager.shutdown()


def test_shared_memory_is_unlinked() -> None:
    with managers.SharedMemoryManager() as manager:
        segment = manager.SharedMemory(100)
        values = manager.ShareableList([1, "two"])
        names = [segment.name, values.shm.name]
        assert all(os.path.exists(f"/dev/shm/{name}") for name in names)
        segment.close()
        values.shm.close()
    assert not any(os.path.exists(f"/dev/shm/{name}") for name in names)
