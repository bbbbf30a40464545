"""What a handler of a signal, or a finalizer, may call: anywhere in the middle of whatever the main thread does.

`everywhere` plays a step of the main thread again and again, and has the handler called before another one of its
bytecodes each time, as Python calls handlers between two of them: in all functions of the engine and of process life.
"""

import faulthandler
import gc
import itertools
import os
import random
import select
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from concurrent.futures import CancelledError, wait
from concurrent.futures import _base as futures_base

from face_script import SOON, case, identity, main, raises, still_works, until

import manycore
from manycore._native.step import NESTED

ROOM = (os.path.dirname(manycore.__file__), threading.__file__, futures_base.__file__)
WHOLE = bool(os.environ.get("MANYCORE_CHAOS_WHOLE"))  # at each bytecode; else at some, another selection each time
SOME, FEW = 4, 1  # of each pair of a step and a handler; where each wants a pool of its own
HUNG_S = 20.0


class Strike:
    """Calls `handler` before the bytecode number `at` of what runs inside, of the main thread and of manycore's own."""

    def __init__(self, at, handler):
        self.at = at
        self.handler = handler
        self.count = 0
        self.struck = False

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                self.struck = True
                self.handler()
        return self.trace


def everywhere(prepare, step, handler, check, some=SOME):
    """`check(state)` holds after `handler(state)` was called before each bytecode, or before some, of `step(state)`."""
    gc.disable()  # what is collected, and when, is for the handler to say
    state = prepare()
    with (counter := Strike(0, None)):
        step(state)
    gc.enable()
    check(state)
    places = range(1, counter.count + 1)
    if not WHOLE:
        places = sorted(random.sample(places, min(some, len(places))))
    for at in places:
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        gc.disable()
        state = prepare()
        strike = Strike(at, lambda state=state: handler(state))
        try:
            with strike:
                step(state)
        except (manycore.ManycoreError, CancelledError):  # it has ended beneath it
            if not strike.struck:
                raise
        gc.enable()
        check(state)
    faulthandler.cancel_dump_traceback_later()


class State:
    def __init__(self, face, **more):
        self.face = face
        self.__dict__.update(more)


# What the main thread does


def one_call(state):
    assert state.face.submit(identity, 5).result(SOON * 5) == 5


def one_call_with_options(state):
    assert state.face.pool.options(timeout=60, priority=1).submit(identity, 5).result(SOON * 5) == 5


def with_callback(state):
    future = state.face.submit(identity, [5])
    future.add_done_callback(lambda _: None)
    assert future.result(SOON * 5) == [5]


def waits_for_several(state):
    futures = [state.face.submit(identity, (n,)) for n in range(3)]
    done, _ = wait(futures, SOON * 5)
    for future in done:
        future.result()


def lazy_map(state):
    results = state.face.map(identity, range(30))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    del results


def whole_map(state):
    assert list(state.face.pool.map(identity, [(n,) for n in range(10)])) == [(n,) for n in range(10)]


def cancels(state):
    futures = [state.face.submit(time.sleep, 0.0005) for _ in range(4)]
    for future in futures:
        future.cancel()


def ends_in_order(state):
    state.face.submit(identity, 1)
    state.face.wait()


def ends(state):
    state.face.submit(identity, 1)
    state.face.end()


def makes_another(state):
    other = type(state.face)(1)
    assert other.submit(identity, 1).result(SOON * 5) == 1
    other.end()


def starts_a_process(state):
    process = manycore.Process(target=int)
    process.start()
    process.join()


OF_POOLS = [one_call, one_call_with_options, with_callback, lazy_map, whole_map, cancels]
STEPS = [*OF_POOLS, waits_for_several, starts_a_process]
LAST_STEPS = [ends_in_order, ends, makes_another]


# What the handler does


def ends_it(state):
    state.face.end()


def ends_it_in_order(state):
    state.face.wait()


def shuts_it_down(state):
    if hasattr(state.face.pool, "shutdown"):
        state.face.pool.shutdown(wait=False, cancel_futures=True)
    else:
        state.face.pool.close()


def is_over(state):
    pids = state.face.pool.stats().pids
    state.face.wait()
    assert state.face.pool.stats().workers == 0
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in b"ZX"
    except OSError:
        return False


def through(make, steps, handlers):
    def prepare():
        face = make(1)
        face.submit(identity, 1).result()
        return State(face)

    for step, handler in itertools.product(steps, handlers):
        print(step.__name__, handler.__name__, flush=True)
        everywhere(prepare, step, handler, is_over, FEW)


@case
def handler_that_ends_the_pool(make):
    through(make, STEPS, [ends_it, ends_it_in_order, shuts_it_down])


@case
def handler_that_ends_the_pool_while_it_ends(make):
    through(make, LAST_STEPS, [ends_it, ends_it_in_order, shuts_it_down])


def asks(state):
    try:
        assert state.face.submit(identity, 7).result(SOON * 5) == 7
        assert list(state.face.map(identity, range(3))) == [0, 1, 2]
    except RuntimeError as error:
        if str(error) != NESTED:
            raise


def waits_for_another(state):
    future = state.face.submit(identity, 7) if not state.held else state.held.pop()
    try:
        done, pending = wait([future], SOON * 5)
    except RuntimeError as error:
        if str(error) != NESTED:
            raise
    else:
        assert done
        assert not pending


def looks(state):
    state.face.pool.stats()
    repr(state.face.pool)
    for future in state.held:
        future.running()


def cancels_what_waits(state):
    for future in state.held:
        future.cancel()


def drops(state):
    state.held.clear()
    state.results = None
    gc.collect()


def works_on(state):
    for future in state.held:
        future.cancel()
        raises((CancelledError,), future.result, SOON) if future.cancelled() else future.result(SOON * 5)
    for result in state.face.map(identity, range(3)):
        assert result in range(3)
    assert state.face.submit(identity, 1).result(SOON * 5) == 1


def on(make, handlers):
    face = make(1)
    still_works(face)

    def prepare():
        state = State(face)
        state.results = face.map(identity, range(200))
        next(state.results)
        state.held = [face.submit(identity, (n,)) for n in range(5)]
        return state

    for step, handler in itertools.product(STEPS, handlers):
        print(step.__name__, handler.__name__, flush=True)
        everywhere(prepare, step, handler, works_on)
    face.wait()


@case
def handler_that_asks_the_pool(make):
    on(make, [asks, waits_for_another, looks])


@case
def handler_that_drops_what_it_has(make):
    on(make, [cancels_what_waits, drops])


class Owner:
    """What ends its pool when it is collected, as many a program's classes do."""

    def __init__(self, face):
        self.face = face
        self.itself = self

    def __del__(self):
        self.face.end()


@case
def owner_is_collected(make):
    def prepare():
        face = make(1)
        face.submit(identity, 1).result()
        state = State(face)
        Owner(face)
        return state

    for step in STEPS:
        print(step.__name__, flush=True)
        everywhere(prepare, step, lambda _: gc.collect(), is_over, FEW)


class Ended(BaseException):
    """What a handler of SIGTERM raises, as `sys.exit` does."""


@case
def handler_that_raises(make):
    """At random instants, while other threads use the pool: they must come to an end with it.

    Not within `concurrent.futures.wait`, which an exception leaves with the locks of its futures held, of any.
    """
    chance = random.Random(random.random())
    armed = False

    def strike(*_):
        if armed:
            raise Ended

    signal.signal(signal.SIGALRM, strike)
    sys.unraisablehook = id  # for finalizers that are interrupted
    many = 400 if WHOLE else 5
    struck = 0
    for _ in range(many):
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        face = make(2)
        face.submit(identity, 1).result()
        others = [threading.Thread(target=use, args=(face,), daemon=True) for _ in range(2)]
        for thread in others:
            thread.start()
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, 10 ** chance.uniform(-4.3, -2.0), 0.5)  # again if a finalizer had it
            while True:
                chance.choice(OF_POOLS)(State(face))
        except Ended:
            armed = False
            struck += 1
        except (manycore.ManycoreError, CancelledError):  # the result that it had in hand
            armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        face.end()
        for thread in others:
            thread.join(SOON * 5)
            assert not thread.is_alive(), "a thread was left waiting"
    assert struck > many // 2
    faulthandler.cancel_dump_traceback_later()


def use(face):
    try:
        while True:
            assert face.submit(identity, 3).result() == 3
            for result in face.map(identity, range(5)):
                assert result in range(5)
    except (manycore.ManycoreError, CancelledError):
        pass


@case
def real_signals(make):
    """At random instants, in compiled code as well: the handler ends the pool while the main thread uses it."""
    chance = random.Random(random.random())
    many = 2000 if WHOLE else 12
    face = None

    def strike(*_):
        chance.choice([ends_it, ends_it_in_order, shuts_it_down])(State(face))

    signal.signal(signal.SIGALRM, strike)
    for _ in range(many):
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        face = make(1)
        face.submit(identity, 1).result()
        signal.setitimer(signal.ITIMER_REAL, 10 ** chance.uniform(-4.5, -2.3))
        try:
            while True:
                chance.choice(STEPS)(State(face))
        except (manycore.ManycoreError, CancelledError):
            pass
        while signal.getitimer(signal.ITIMER_REAL)[0]:
            select.select([], [], [], 0.001)
        is_over(State(face))
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
