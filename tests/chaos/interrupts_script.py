"""Ctrl-C in the main thread, again and again and at random instants, while other threads use the same pool."""

import faulthandler
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from concurrent.futures import CancelledError, as_completed, wait

from face_script import SOON, case, main, still_works, until, warm

import manycore

MANY = int(os.environ.get("MANYCORE_CHAOS_MANY", "1"))  # how many times as many interrupts there are
INTERRUPTS = 250
HUNG_S = 20.0  # without a step of a thread


def double(value):
    return value + value


def sleep(seconds):
    time.sleep(seconds)
    return seconds


class Storm:
    """A timer's signal asks for a Ctrl-C at instants that nothing else decides; it is raised where the storm is armed.

    Once: a second one in the clause that handles the first would end the program.
    """

    def __init__(self, interrupts):
        self.left = interrupts
        self.raised = 0
        self.armed = False
        self.chance = random.Random(random.random())
        signal.signal(signal.SIGINT, self.interrupt)
        signal.signal(signal.SIGALRM, self.strike)
        self.wind_up()

    def wind_up(self):
        signal.setitimer(signal.ITIMER_REAL, 10 ** self.chance.uniform(-4.5, -2.3))

    def strike(self, *_):
        self.wind_up()
        if self.armed:
            signal.raise_signal(signal.SIGINT)  # as the terminal's comes: to whatever handles it at this instant

    def interrupt(self, *_):
        if self.armed and self.left:
            self.armed = False
            self.left -= 1
            self.raised += 1
            raise KeyboardInterrupt

    def end(self):
        self.armed = False
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


class Others:
    """Threads that use the pool meanwhile, each with its own values: each must get its own results."""

    def __init__(self, face, works):
        self.face = face
        self.over = False
        self.errors = []
        self.steps = [0] * len(works)
        self.threads = []
        for number, work in enumerate(works):
            thread = threading.Thread(target=self.run, args=(number, work), name=work.__name__, daemon=True)
            self.threads.append(thread)
            thread.start()

    def run(self, number, work):
        base = number * 1_000_000
        try:
            while not self.over:
                work(self.face, base + self.steps[number] % 1000)
                self.steps[number] += 1
        except BaseException as error:
            self.errors.append((work.__name__, error))
            raise

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join(SOON * 5)
        assert not any(thread.is_alive() for thread in self.threads), "a thread was left waiting"
        assert not self.errors, self.errors
        assert all(self.steps), self.steps


def calls(face, base):
    assert face.submit(double, base).result(SOON * 5) == base * 2


def calls_of_a_while(face, base):
    assert face.submit(sleep, 0.001).result(SOON * 5) == 0.001
    assert face.submit(double, str(base)).result(SOON * 5) == str(base) * 2


def waits(face, base):
    futures = [face.submit(double, base + n) for n in range(5)]
    done, pending = wait(futures, SOON * 5)
    assert not pending, pending
    assert sorted(future.result() for future in done) == [2 * (base + n) for n in range(5)]


def takes_as_completed(face, base):
    futures = [face.submit(double, [base + n] * 10) for n in range(5)]
    found = sorted(future.result()[0] for future in as_completed(futures, SOON * 5))
    assert found == [base + n for n in range(5)]


def maps(face, base):
    found = list(face.map(double, range(base, base + 50)))
    assert found == list(range(2 * base, 2 * base + 100, 2)), found


def maps_of_pickles(face, base):
    found = list(face.map(double, [(base + n,) for n in range(20)]))
    assert found == [(base + n,) * 2 for n in range(20)], found


def callbacks(face, base):
    told = threading.Event()
    future = face.submit(double, base)
    future.add_done_callback(lambda _: told.set())
    assert told.wait(SOON * 5)
    assert future.result(0) == base * 2


WORKS = [calls, calls_of_a_while, waits, takes_as_completed, maps, maps_of_pickles, callbacks]


def one_call(face, chance):
    assert face.submit(double, 21).result(SOON * 5) == 42


def several_calls(face, chance):
    futures = [face.submit(double, [n]) for n in range(chance.randrange(20))]
    assert [future.result(SOON * 5) for future in futures] == [[n, n] for n in range(len(futures))]


def cancelled_calls(face, chance):
    futures = [face.submit(sleep, 0.001) for _ in range(6)]
    for future in futures[1:]:
        future.cancel()
    futures[0].result(SOON * 5)


def whole_map(face, chance):
    found = list(face.map(double, range(100)))
    assert found == list(range(0, 200, 2)), found


def dropped_map(face, chance):
    results = face.map(double, range(100))
    assert next(results) == 0
    if chance.random() < 0.5 and hasattr(results, "close"):
        results.close()


def killed_call(face, chance):
    future = face.submit(sleep, 0.05)
    sleep(chance.uniform(0, 0.003))
    future.cancel(running=True)


MAINS = [one_call, several_calls, cancelled_calls, whole_map, dropped_map]


def through(face, mains, works):
    warm(face)
    assert manycore.WorkerDied  # imported before: an import that is interrupted is Python's to mend
    still_works(face)
    chance = random.Random(random.random())
    sys.unraisablehook = id  # for finalizers that are interrupted; no step of Python
    others = Others(face, works)
    until(lambda: all(others.steps) or others.errors)
    storm = Storm(INTERRUPTS * MANY)
    while storm.left and not others.errors:
        faulthandler.dump_traceback_later(HUNG_S, exit=True)
        work = chance.choice(mains)
        try:
            storm.armed = True
            work(face, chance)
            storm.armed = False
        except KeyboardInterrupt:
            storm.armed = False
        except (manycore.ManycoreError, CancelledError):
            storm.armed = False
    storm.end()
    faulthandler.dump_traceback_later(HUNG_S * 2, exit=True)
    others.end()
    still_works(face)
    assert storm.raised == INTERRUPTS * MANY
    face.wait()
    faulthandler.cancel_dump_traceback_later()


@case
def others_get_their_results(make):
    through(make(), MAINS, WORKS)


@case
def others_get_their_results_beside_kills(make):
    through(make(), [*MAINS, killed_call], WORKS)


if __name__ == "__main__":
    main()
