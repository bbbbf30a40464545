"""What goes wrong in pickles, exceptions, initializers and callbacks: it stays in the one task."""

import ctypes
import itertools
import logging
import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from face_script import SOON, case, identity, main, pids, prompt, raises, start_thread, still_works, until

import manycore
from manycore import PoolBroken, ResultPicklingError, TaskPicklingError, WorkerDied
from manycore._engine import staff

HARM = {
    "raise": lambda: 1 / 0,
    "exit": lambda: os._exit(3),
    "sys_exit": sys.exit,
    "segfault": lambda: ctypes.string_at(0),
    "interrupt": lambda: exec("raise KeyboardInterrupt"),
}


def do(harm):
    HARM[harm]()


class OnPickle:
    """Does harm where it is pickled: here for an argument, in the worker for a result."""

    def __init__(self, harm, parent):
        self.harm = harm
        self.parent = parent

    def __reduce__(self):
        if os.getpid() != self.parent or self.harm == "raise":
            do(self.harm)
        return OnPickle, (self.harm, self.parent)


def rebuild(harm, parent):
    if os.getpid() != parent or harm == "raise":
        do(harm)
    return "harmless"


class OnUnpickle:
    """Does harm where it is rebuilt, unless that is in the parent (but for "raise")."""

    def __init__(self, harm, parent):
        self.harm = harm
        self.parent = parent

    def __reduce__(self):
        return rebuild, (self.harm, self.parent)


def give_on_pickle(harm, parent):
    return OnPickle(harm, parent)


def give_on_unpickle():
    return OnUnpickle("raise", os.getpid())


@case
def argument_cannot_be_pickled(make):
    face = make()
    wanted = (TaskPicklingError, ZeroDivisionError)  # a pool raises it at once, an executor through the future
    raises(wanted, lambda: face.submit(identity, OnPickle("raise", os.getpid())).result(SOON))
    lock = threading.Lock()
    found = raises(Exception, lambda: face.submit(identity, {"a": [lock]}).result(SOON))
    assert isinstance(found, (TaskPicklingError, TypeError)), found
    assert "lock" in str(found)
    still_works(face)
    face.wait()


@case
def argument_cannot_be_rebuilt(make):
    face = make()
    here = os.getpid()
    error = raises(TaskPicklingError, face.submit(identity, OnUnpickle("raise", here)).result, SOON)
    assert "ZeroDivisionError" in str(error.__cause__)
    for harm in ("sys_exit", "interrupt"):
        raises(TaskPicklingError, face.submit(identity, OnUnpickle(harm, here)).result, SOON)
    for harm in ("exit", "segfault"):
        raises(WorkerDied, face.submit(identity, OnUnpickle(harm, here)).result, SOON * 2)
    still_works(face)
    face.wait()


@case
def argument_of_a_map_cannot_be_rebuilt(make):
    face = make()
    here = os.getpid()
    for harm, kind in (("raise", TaskPicklingError), ("exit", WorkerDied), ("segfault", WorkerDied)):
        items = [OnUnpickle(harm, here) if n == 70 else n for n in range(200)]
        if hasattr(face.pool, "outcomes"):
            done = list(face.pool.outcomes(identity, items, chunksize=50))
            assert [one.index for one in done if one.error is not None] == [70]
            assert isinstance(done[70].error, kind)
            assert [one.result for one in done if one.error is None] == [n for n in range(200) if n != 70]
        else:
            results = face.pool.map(identity, items, chunksize=50)
            assert [next(results) for _ in range(70)] == list(range(70))
            raises(kind, next, results)
    still_works(face)
    face.wait()


@case
def result_cannot_be_pickled(make):
    face = make()
    here = os.getpid()
    error = raises(ResultPicklingError, face.submit(give_on_pickle, "raise", here).result, SOON)
    assert "give_on_pickle" in str(error)
    assert "ZeroDivisionError" in str(error.__cause__)
    raises(ResultPicklingError, face.submit(threading.Lock).result, SOON)
    for harm in ("sys_exit", "interrupt"):
        raises(ResultPicklingError, face.submit(give_on_pickle, harm, here).result, SOON)
    for harm in ("exit", "segfault"):
        raises(WorkerDied, face.submit(give_on_pickle, harm, here).result, SOON * 2)
    still_works(face)
    face.wait()


@case
def result_cannot_be_rebuilt(make):
    face = make()
    error = raises(ResultPicklingError, face.submit(give_on_unpickle).result, SOON)
    assert isinstance(error.__cause__, ZeroDivisionError)
    still_works(face)
    face.wait()


def go_on_at(gate):
    assert gate.wait(SOON)


class SlowToRebuild:
    def __init__(self, gate):
        self.gate = gate

    def __reduce__(self):
        return go_on_at, (self.gate,)


@case
def result_is_slow_to_rebuild(make):
    face = make()
    may_be_rebuilt = manycore.Event()
    slow = face.submit(SlowToRebuild, may_be_rebuilt)
    until = time.monotonic() + SOON
    while not slow.done() and time.monotonic() < until:
        time.sleep(0.001)
    thread = start_thread(slow.result)
    assert face.submit(identity, 1).result(SOON / 2) == 1  # not held up
    may_be_rebuilt.set()
    thread.join()
    face.wait()


class TwoArguments(Exception):
    def __init__(self, one, two):
        super().__init__(one)
        self.two = two


class Custom(BaseException):
    pass


class Terrible(Exception):
    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__

    def __reduce__(self):
        raise ValueError("no pickle")


def throw(error):
    raise error


def throw_two():
    raise TwoArguments(1, 2)


def throw_terrible():
    raise Terrible


def throw_lock():
    raise ValueError(threading.Lock())


def throw_chain():
    try:
        throw_terrible()
    except Terrible as error:
        raise ValueError("outer") from error


class Deadly(Exception):
    def __reduce__(self):
        os._exit(9)


def throw_deadly():
    raise Deadly


@case
def exceptions(make):
    face = make()
    for error in (
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        Custom("x"),
        StopIteration(4),
        ZeroDivisionError(),
    ):
        found = raises(type(error), face.submit(throw, error).result, SOON)
        assert found.args == error.args
        assert "throw" in str(found.__cause__)
    for function in (throw_two, throw_terrible, throw_lock):
        error = raises(ResultPicklingError, face.submit(function).result, SOON)
        assert function.__name__ in str(error), error
        assert function.__name__ in str(error.__cause__)
    assert str(raises(ValueError, face.submit(throw_chain).result, SOON)) == "outer"
    raises(WorkerDied, face.submit(throw_deadly).result, SOON * 2)
    still_works(face)
    face.wait()


@case
def out_of_depth(make):
    face = make()

    def deeper():
        return deeper()

    raises(RecursionError, face.submit(deeper).result, SOON)
    nested = []
    for _ in range(100_000):
        nested = [nested]
    try:
        raises(Exception, face.submit(identity, nested).result, SOON)
    except (TaskPicklingError, RecursionError):
        pass
    still_works(face)
    face.end()
    while nested:
        nested = nested[0]


def initializer_raises():
    raise ValueError("not today")


@case
def initializer_that_raises(make):
    started = time.monotonic()
    face = make(2, initializer_raises)
    try:
        futures = [face.submit(identity, n) for n in range(5)]
    except PoolBroken:
        futures = []
    for future in futures:
        error = raises(PoolBroken, future.result, SOON * 3)
        assert "not today" in str(error)
        assert "initializer_raises" in str(error.__cause__)
    raises(PoolBroken, lambda: face.submit(identity, 1).result(SOON))
    assert face.pool.stats().workers_started <= 4
    face.wait()
    prompt(started, SOON * 3)


@case
def initializer_that_exits(make):
    face = make(2, os._exit, (4,))
    try:
        future = face.submit(identity, 1)
    except PoolBroken:
        pass
    else:
        raises(PoolBroken, future.result, SOON * 5)
    assert face.pool.stats().workers_started <= 10
    face.wait()


def wait_for_ever():
    threading.Event().wait()


@case
def initializer_that_hangs(make):
    face = make(2, wait_for_ever)
    future = face.submit(identity, 1)
    raises(TimeoutError, future.result, 0.3)
    started = time.monotonic()
    face.end()
    prompt(started)
    raises(face.ENDED, future.result, 1)


def hangs_beyond_its_timeout(make, initializer):
    started = time.monotonic()
    face = make(2, initializer, initializer_timeout=0.1)
    try:
        error = raises(PoolBroken, face.submit(identity, 1).result, SOON * 5)
    except PoolBroken as found:
        error = found
    assert initializer.__name__ in str(error), error
    assert "0.1 s" in str(error), error
    assert f"in {initializer.__name__}" in str(error), error  # the stack
    assert time.monotonic() - started > 0.2, "the first start that fails is not the end"
    assert face.pool.stats().workers_started <= 8
    until(lambda: face.pool.stats().workers == 0)
    face.wait()


@case
def initializer_that_hangs_beyond_its_timeout(make):
    hangs_beyond_its_timeout(make, wait_for_ever)


def keep_the_interpreter():
    all(itertools.repeat(True))


@case
def initializer_that_keeps_the_interpreter(make):
    hangs_beyond_its_timeout(make, keep_the_interpreter)


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@case
def initializer_that_stops_its_process(make):
    face = make(1, stop_itself, initializer_timeout=0.1)
    error = raises(PoolBroken, lambda: face.submit(identity, 1).result(SOON * 5))
    assert "stop_itself" in str(error), error
    face.wait()


def hang_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    wait_for_ever()


@case
def initializer_that_hangs_once(make):
    face = make(2, hang_once, (os.path.abspath("once"),), initializer_timeout=0.2)
    still_works(face)
    until(lambda: face.pool.stats().workers_died == 1)
    until(lambda: len(pids(face)) == 2)
    still_works(face)
    face.wait()


def only_one(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        if not os.path.exists(f"{path}.more"):
            os._exit(5)


@case
def starts_fail_while_one_works(make):
    staff.SPARE_STARTS = 0
    told = []
    logging.getLogger("manycore").addHandler(Telling(told))
    path = os.path.abspath("one")
    face = make(2, only_one, (path,))
    still_works(face)
    until(lambda: face.pool.stats().workers_died >= 3)
    until(lambda: told)
    assert "exit code 5" in told[0], told
    still_works(face)
    os.close(os.open(f"{path}.more", os.O_CREAT))
    until(lambda: len(pids(face)) == 2 and face.pool.stats().workers == 2)
    still_works(face)
    assert len(told) == 1, told
    face.wait()


class Telling(logging.Handler):
    def __init__(self, told):
        super().__init__()
        self.told = told

    def emit(self, record):
        self.told.append(record.getMessage())


def only_one_does_not_raise(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ValueError("there is one already") from None


@case
def last_worker_dies_when_no_other_can_start(make):
    staff.SPARE_STARTS = 0
    told = []
    logging.getLogger("manycore").addHandler(Telling(told))
    face = make(1, only_one_does_not_raise, (os.path.abspath("one"),))
    still_works(face)
    face.pool.resize(2)
    until(lambda: told)
    assert "there is one already" in told[0], told
    still_works(face)
    raises(WorkerDied, face.submit(os._exit, 1).result, SOON * 5)
    error = raises(PoolBroken, lambda: face.submit(identity, 1).result(SOON * 5))
    assert "there is one already" in str(error), error
    face.wait()


def leave_once(path):
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os._exit(5)


@case
def initializer_that_exits_once(make):
    face = make(2, leave_once, (os.path.abspath("once"),))
    still_works(face)
    face.wait()


@case
def callback_raises(make):
    face = make()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (it is told there)
    for kind in (ValueError, SystemExit, Custom):
        told = threading.Event()

        def callback(_, kind=kind, told=told):
            told.set()
            raise kind("from a callback")

        future = face.submit(identity, 1)
        future.add_done_callback(callback)
        assert told.wait(SOON)
        assert future.result(SOON) == 1
        again = threading.Event()
        face.submit(identity, 1).add_done_callback(lambda _, again=again: again.set())
        assert again.wait(SOON), f"nobody collects after {kind}"
    still_works(face)
    face.wait()


@case
def callback_blocks(make):
    face = make()
    inside, over = threading.Event(), threading.Event()

    def callback(_):
        inside.set()
        over.wait()

    face.submit(identity, 1).add_done_callback(callback)
    assert inside.wait(SOON)
    still_works(face)
    started = time.monotonic()
    face.end()
    prompt(started)
    over.set()


@case
def callback_submits_and_ends(make):
    face = make()
    over = threading.Event()
    results = []

    def callback(future):
        results.append(future.result())
        if len(results) < 50:
            face.submit(identity, len(results)).add_done_callback(callback)
        else:
            over.set()

    face.submit(identity, 0).add_done_callback(callback)
    assert over.wait(SOON * 5)
    assert results == list(range(50))
    ended = threading.Event()

    def end(_):
        face.end()
        ended.set()

    face.submit(identity, 0).add_done_callback(end)
    assert ended.wait(SOON)


def takes_long(n):
    time.sleep(0.001)
    return n


@case
def input_raises(make):
    face = make()

    def items():
        yield from range(100)
        raise ValueError("no more")

    if hasattr(face.pool, "imap"):
        results = face.pool.imap(takes_long, items())
        got = []
        error = raises(ValueError, lambda: got.extend(results))
        assert str(error) == "no more"
        results = face.pool.imap_unordered(takes_long, items())
        raises(ValueError, lambda: sorted(results))
        raises(ValueError, face.pool.map, takes_long, items())
    else:
        raises(ValueError, lambda: list(face.pool.map(takes_long, items())))
        raises(ValueError, lambda: list(face.pool.map(takes_long, items(), buffersize=5)))
    still_works(face)
    face.wait()


@case
def input_blocks_while_it_ends(make):
    face = make()
    inside = threading.Event()

    def items():
        yield 1
        inside.set()
        threading.Event().wait()

    def consume():
        results = (
            face.pool.imap(identity, items())
            if hasattr(face.pool, "imap")
            else face.pool.map(identity, items(), buffersize=5)
        )
        list(results)

    start_thread(consume)
    assert inside.wait(SOON)
    started = time.monotonic()
    face.end()
    prompt(started)


@case
def nested_pool(make):
    face = make()

    def inner(n):
        with manycore.Pool(2) as pool:
            return sum(pool.map(abs, range(n)))

    assert face.submit(inner, 10).result(SOON * 5) == 45
    try:
        future = face.submit(lambda: face.submit(abs, 1).result())  # the pool itself does not travel
    except Exception:
        pass
    else:
        raises(Exception, future.result, SOON)
    still_works(face)
    face.wait()


if __name__ == "__main__":
    main()
