"""Records and warnings of workers arrive in this process's handlers, and cost nobody more than they have to."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import manycore

NAME = "manycore_tests.logs"


class Keeper(logging.Handler):
    """Keeps records; waits first, where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.may_go_on.wait()
        self.records.append(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]

    def awaited(self, count: int) -> list[str]:
        """The messages, once there are so many; the test's own limit bounds it."""
        while len(self.records) < count:
            time.sleep(0.001)
        return self.messages()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(keeper)
    captured = logging.getLogger("py.warnings")
    captured.addHandler(keeper)
    captured.propagate = False
    yield keeper
    keeper.may_go_on.set()
    captured.removeHandler(keeper)
    captured.propagate = True
    logger.removeHandler(keeper)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def say(text: object, *, level: int = logging.INFO) -> object:
    logging.getLogger(NAME).log(level, "said %s", text, extra={"size": 3, "odd": object()})
    return text


def fail_loudly(_: object) -> None:
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger(NAME).exception("failed")


def warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=1)


def with_pool(function: Callable[[Any], Any], items: list[Any], **options: Any) -> list[Any]:
    with manycore.Pool(2, name="talk", **options) as pool:
        return pool.map(function, items)


def with_executor(function: Callable[[Any], Any], items: list[Any], **options: Any) -> list[Any]:
    with manycore.ProcessPoolExecutor(2, name="talk", **options) as executor:
        return [future.result() for future in [executor.submit(function, item) for item in items]]


both_faces = pytest.mark.parametrize("run", [with_pool, with_executor])


@both_faces
def test_a_record_arrives_with_its_worker_and_its_task(run: Any, keeper: Keeper) -> None:
    assert run(say, list(range(10))) == list(range(10))
    assert sorted(keeper.awaited(10)) == sorted(f"said {n}" for n in range(10))
    for record in keeper.records:
        assert (record.name, record.levelno, record.funcName) == (NAME, logging.INFO, "say")
        assert record.manycore_pool == "talk"  # type: ignore[attr-defined]
        assert record.manycore_worker in (0, 1)  # type: ignore[attr-defined]
        assert record.manycore_function == "say"  # type: ignore[attr-defined]
        assert record.processName == f"PoolWorker-{record.manycore_worker + 1}"  # type: ignore[attr-defined]
        assert record.process != os.getpid()
        assert record.size == 3  # type: ignore[attr-defined]
        assert record.odd.startswith("<object object at")  # type: ignore[attr-defined]
    assert len({record.manycore_task for record in keeper.records}) == 10  # type: ignore[attr-defined]


def test_a_record_is_there_before_the_result_is(keeper: Keeper) -> None:
    with manycore.Pool(1) as pool:
        for n in range(200):
            pool.apply(say, (n,))
            assert keeper.messages() == [f"said {m}" for m in range(n + 1)]


def test_a_traceback_arrives_as_text(keeper: Keeper) -> None:
    with_pool(fail_loudly, [0])
    (record,) = keeper.records
    assert record.exc_text is not None
    assert record.exc_text.startswith("Traceback")
    assert record.exc_text.endswith("KeyError: 'lost'")


@both_faces
def test_warnings_arrive(run: Any, keeper: Keeper) -> None:
    run(warn, ["mind the gap"])
    (record,) = keeper.records
    assert (record.name, record.levelno) == ("py.warnings", logging.WARNING)
    assert "RuntimeWarning: mind the gap" in record.getMessage()
    assert record.manycore_function == "warn"  # type: ignore[attr-defined]


def test_the_levels_here_hold(keeper: Keeper) -> None:
    logging.getLogger(NAME).setLevel(logging.ERROR)
    with_pool(lambda level: say(level, level=level), [logging.DEBUG, logging.WARNING, logging.ERROR])
    assert keeper.messages() == ["said 40"]


def test_the_levels_here_hold_where_they_are_raised_later(keeper: Keeper) -> None:
    with manycore.Pool(1) as pool:
        pool.apply(say, (1,))
        logging.getLogger(NAME).setLevel(logging.ERROR)
        pool.apply(say, (2,))
        pool.apply(fail_loudly, (3,))
    assert keeper.messages() == ["said 1", "failed"]


def test_they_can_be_switched_off(keeper: Keeper, capfd: pytest.CaptureFixture[str]) -> None:
    def shout(n: int) -> None:
        say(n, level=logging.ERROR)
        warn(str(n))

    with_pool(shout, [7], logs=False)
    assert keeper.records == []
    told = capfd.readouterr().err
    assert "said 7" in told
    assert "RuntimeWarning: 7" in told


@pytest.mark.parametrize("level", ["ERROR", logging.ERROR])
def test_a_level_can_be_asked_for(level: int | str, keeper: Keeper) -> None:
    logging.getLogger(NAME).setLevel(logging.NOTSET)  # so that the root's decides in the worker
    with_pool(lambda level: say(level, level=level), [logging.WARNING, logging.ERROR], logs=level)
    assert keeper.messages() == ["said 40"]


def test_a_level_must_be_one() -> None:
    with pytest.raises(ValueError, match="Unknown level"):
        manycore.Pool(1, logs="LOUD")


def configure(kind: str, path: Path) -> None:
    if kind == "basicConfig":
        logging.basicConfig(filename=path, level=logging.INFO, format="%(message)s")
    else:
        root = logging.getLogger()
        root.addHandler(logging.FileHandler(path))
        root.setLevel(logging.INFO)


@pytest.mark.parametrize("kind", ["basicConfig", "addHandler"])
def test_an_initializer_that_configures_logging_has_chosen(kind: str, keeper: Keeper, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with_pool(say, [1], initializer=configure, initargs=(kind, path))
    assert keeper.records == []
    assert path.read_text() == "said 1\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_record_is_handled_once_whatever_the_start_method(method: str, keeper: Keeper, tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = logging.FileHandler(path)  # which a forked worker has as well
    logging.getLogger(NAME).addHandler(handler)
    try:
        with manycore.Pool(1, context=manycore.get_context(method)) as pool:
            pool.map(say, range(3))
            assert keeper.awaited(3) == [f"said {n}" for n in range(3)]
    finally:
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
        logging.getLogger(NAME).removeHandler(handler)
        handler.close()
    assert path.read_text().splitlines() == [f"said {n}" for n in range(3)]


# ------------------------------------------------------------------------------------------- trouble


@both_faces
def test_what_a_dying_worker_said_arrives(run: Any, keeper: Keeper) -> None:
    def last_words(count: int) -> None:
        for n in range(count):
            say(n)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(manycore.WorkerDied):
        run(last_words, [50])
    assert keeper.awaited(50) == [f"said {n}" for n in range(50)]


def test_a_worker_killed_while_it_speaks_loses_a_record_at_the_most(keeper: Keeper) -> None:
    def speak(_: int) -> None:
        threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGKILL)).start()
        n = 0
        while True:
            say(n)
            n += 1

    for _ in range(4):
        keeper.records.clear()
        with pytest.raises(manycore.WorkerDied):
            with_pool(speak, [0])
        heard = keeper.messages()
        assert heard == [f"said {n}" for n in range(len(heard))]


@pytest.mark.timeout(30)
def test_a_handler_that_blocks_costs_records_and_nothing_else(keeper: Keeper) -> None:
    def chatter(count: int) -> int:
        for n in range(count):
            say(n)
        return count

    keeper.may_go_on.clear()
    with manycore.Pool(1) as pool:
        assert pool.apply(chatter, (1500,)) == 1500  # two seconds for the first record that has no room
        before = time.monotonic()
        assert [pool.apply(abs, (-n,)) for n in range(100)] == list(range(100))
        assert pool.apply(chatter, (500,)) == 500
        assert time.monotonic() - before < 2
        keeper.may_go_on.set()
        assert keeper.awaited(1000) == [f"said {n}" for n in range(1000)]
        lost = logging.getLogger("manycore")
        lost.addHandler(keeper)
        lost.propagate = False
        try:
            pool.apply(chatter, (1,))
            who = f"worker 0 of pool {pool.name!r}"
            note = f"1000 log records of {who} were lost: the handlers here are slower than it logs"
            assert keeper.awaited(1002)[1000:] == [note, "said 0"]
        finally:
            lost.removeHandler(keeper)
            lost.propagate = True


class Raiser(Keeper):
    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "said 0":
            raise RuntimeError("no")
        super().emit(record)


def test_a_handler_that_raises_is_told_of_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    keeper = Raiser()
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    logger.addHandler(keeper)
    try:
        with_pool(say, [0, 1, 2])
        assert sorted(keeper.awaited(2)) == ["said 1", "said 2"]
    finally:
        logger.removeHandler(keeper)
        logger.setLevel(logging.NOTSET)
    assert "raised for a worker's record" in capfd.readouterr().err


def test_a_handler_may_use_the_pool(keeper: Keeper) -> None:
    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            answers.append(pool.apply(abs, (-5,)))

    answers: list[int] = []
    handler = Asking()
    logger = logging.getLogger(NAME)
    with manycore.Pool(1) as pool:
        logger.addHandler(handler)
        try:
            pool.map(say, range(20))
            keeper.awaited(20)
            while len(answers) < 20:
                time.sleep(0.001)
        finally:
            logger.removeHandler(handler)


def test_threads_of_a_task_speak_while_a_result_goes_in_pieces(keeper: Keeper) -> None:
    def speak_and_give(size: int) -> list[str]:
        over = threading.Event()

        def speak() -> None:
            while not over.is_set():
                say("something")

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            return [f"{n:09}" for n in range(size)]
        finally:
            over.set()
            thread.join()

    def raise_long(size: int) -> None:
        thread = threading.Thread(target=lambda: [say(n) for n in range(300)], daemon=True)
        thread.start()
        raise ValueError("x" * size)

    with manycore.Pool(2) as pool:
        for result in pool.map(speak_and_give, [20_000] * 6):
            assert result == [f"{n:09}" for n in range(20_000)]
        for _ in range(10):
            with pytest.raises(ValueError, match=r"^x{500000}$"):
                pool.apply(raise_long, (500_000,))
    assert set(keeper.messages()) >= {"said something"}


def test_a_child_that_a_task_forks_has_no_way_to_the_ring(keeper: Keeper, capfd: pytest.CaptureFixture[str]) -> None:
    def parent_and_child(n: int) -> int:
        pid = os.fork()
        if pid == 0:
            for _ in range(100):
                say(n, level=logging.WARNING)
            os._exit(0)
        for _ in range(100):
            say("parent")
        return os.waitpid(pid, 0)[1]

    assert with_pool(parent_and_child, [0, 1, 2, 3]) == [0, 0, 0, 0]
    assert keeper.awaited(400) == ["said parent"] * 400
    assert capfd.readouterr().err.count("said ") == 400


def test_a_record_that_is_too_long_is_cut(keeper: Keeper) -> None:
    with_pool(say, ["y" * 1_000_000])
    (message,) = keeper.messages()
    assert len(message) < 10_000
    assert message.endswith("characters more)")
