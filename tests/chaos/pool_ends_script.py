"""Ends and forks: interpreters that exit, signals, races of those who end a pool with those who use it."""

import copy
import faulthandler
import gc
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from face_script import SOON, case, identity, main, raises, ready, start_thread, still_works, until, warm

import manycore
from manycore import PoolClosed
from manycore.futures import CancelledError


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def forever(_=None):
    all(itertools.repeat(True))


@case
def exit_idle(make):
    warm(make())


@case
def exit_without_a_task(make):
    make()


@case
def exit_busy(make):
    face = make()
    if hasattr(face.pool, "shutdown"):  # the standard library's executor does what was submitted; its pool does not
        path = os.path.abspath("done")
        for n in range(20):
            face.submit(touch, f"{path}{n}")
    else:
        futures = [face.submit(forever) for n in range(20)]
        until(lambda: any(future.running() for future in futures))


def touch(path):
    time.sleep(0.01)
    with open(path, "w"):
        pass


@case
def exit_in_the_middle_of_a_map(make):
    face = make()
    results = face.map(identity, range(100_000))
    assert next(results) == 0
    globals()["kept"] = (face, results)


@case
def exit_by_exception_in_a_thread(make):
    face = make()
    over = threading.Event()

    def use():
        while not over.is_set():
            try:
                face.submit(identity, 1).result()
            except PoolClosed:
                return

    threads = [start_thread(use) for _ in range(4)]
    still_works(face)
    over.set()
    for thread in threads:
        thread.join()


@case
def dropped(make):
    for _ in range(5):
        face = make()
        face.submit(identity, 1).result()
        future = face.submit(sleep, 0.01)
        del face
        gc.collect()
        assert future.result(SOON) == 0.01
        del future
    gc.collect()
    until(lambda: not workers_of(os.getpid()), SOON * 2)
    sys.stderr = None  # "unclosed running pool"


def workers_of(pid):
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if entry.isdigit() and b"manycore: worker" in file.read() and os.getsid(int(entry)) == os.getsid(pid):
                    found.append(int(entry))
        except OSError:
            continue
    return found


@case
def collected_anywhere(make):
    """A pool in a cycle is collected by whichever thread allocates next, with whatever lock it holds."""
    gc.set_threshold(20, 1, 1)
    keeper = make()
    over = threading.Event()

    def use():
        while not over.is_set():
            keeper.submit(identity, [[] for _ in range(20)]).result(SOON * 5)

    threads = [start_thread(use) for _ in range(2)]
    for _ in range(8):
        face = make(1)
        face.submit(identity, 1).result(SOON * 5)
        face.cycle = [face]
        del face
    over.set()
    for thread in threads:
        thread.join(SOON * 5)
        assert not thread.is_alive()
    gc.set_threshold(700, 10, 10)
    gc.collect()
    still_works(keeper)
    keeper.wait()


@case
def used_and_ended_by_eight_threads(make):
    for _ in range(6):
        face = make()
        seen = []
        barrier = threading.Barrier(8)

        def act(number, face=face, seen=seen, barrier=barrier):
            chance = random.Random(number)
            barrier.wait()
            try:
                for n in range(200):
                    if number == 7 and n == 50:
                        face.end() if chance.random() < 0.5 else face.wait()
                    elif number == 6 and n == 60:
                        face.wait()
                    future = face.submit(identity, n)
                    if number % 3 == 0:
                        future.cancel()
                    if number % 3 == 1:
                        assert future.result(SOON * 5) == n
                    seen.append(future)
            except (PoolClosed, CancelledError, *face.ENDED):
                pass

        threads = [start_thread(act, number) for number in range(8)]
        for thread in threads:
            thread.join(SOON * 6)
            assert not thread.is_alive(), "a thread hangs"
        face.end()
        for future in seen:
            assert future.done()


@case
def ended_twice_and_by_all(make):
    for end in ("end", "wait"):
        face = make()
        futures = [face.submit(sleep, 0.001) for _ in range(100)]
        threads = [start_thread(getattr(face, end)) for _ in range(4)]
        for thread in threads:
            thread.join(SOON * 5)
            assert not thread.is_alive()
        for future in futures:
            assert future.done()
        raises(PoolClosed, face.submit, identity, 1)
        face.end()
        face.wait()


@case
def closed_before_it_is_consumed(make):
    """What was accepted is done, though nothing new is taken."""
    face = make()
    if hasattr(face.pool, "imap"):
        lists = [face.pool.map_async(sleep, [0.001] * 300), face.pool.starmap_async(pow, [(2, 3)] * 50_000)]
        lazy = face.pool.imap(sleep, [0.001] * 300), face.pool.imap(identity, iter(range(10_000)))
        face.pool.close()
        raises(PoolClosed, face.pool.map, identity, [1])
        face.pool.join()
        assert [len(result.get(SOON)) for result in lists] == [300, 50_000]
        assert [len(list(results)) for results in lazy] == [300, 10_000]
    else:
        with face.pool:
            results = face.pool.map(sleep, [0.001] * 300)
            lazy = face.pool.map(identity, itertools.count(), buffersize=10)
        assert len(list(results)) == 300
        got = list(itertools.islice(lazy, 5))
        assert got == list(range(5))
        raises((PoolClosed, StopIteration), lambda: [next(lazy) for _ in range(100)])


@case
def a_map_goes_on_after_the_with_block(make):
    face = make()
    if hasattr(face.pool, "imap"):
        with face.pool:
            results = face.pool.imap(sleep, itertools.repeat(0.001))
            next(results)
        raises(PoolClosed, lambda: list(results))
        with manycore.Pool(1) as pool:
            late = pool.apply_async(sleep, (5,))
        raises(PoolClosed, late.get, 1)


@case
def cancelled(make):
    face = make()
    futures = [face.submit(sleep, 0.005) for _ in range(200)]
    cancelled = [future for future in futures[::2] if future.cancel()]
    assert cancelled
    for future in futures:
        try:
            assert future.result(SOON * 5) == 0.005
            assert future not in cancelled
        except CancelledError:
            assert future in cancelled
    still_works(face)
    face.wait()


@case
def forked(make):
    """A fork of the parent neither uses nor ends what is the parent's, and may have a pool of its own."""
    face = make()
    warm(face)
    for way in ("exit", "end", "own", "result", "drop"):
        future = face.submit(sleep, 0.2)
        over = threading.Event()

        def use(over=over):
            while not over.is_set():
                face.submit(identity, 1).result(SOON * 5)

        thread = start_thread(use)
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(10, exit=True)
            code = 1
            try:
                if way == "end":
                    face.end()
                elif way == "own":
                    own = make()
                    still_works(own)
                    own.wait()
                elif way == "result":
                    raises((PoolClosed, TimeoutError), future.result, 5)
                    raises(PoolClosed, face.submit, identity, 1)
                elif way == "drop":
                    del face, future
                    gc.collect()
                if way == "exit":
                    threading._shutdown()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0, way
        assert future.result(SOON) == 0.2, way
        over.set()
        thread.join()
        still_works(face)
    face.wait()


def length_of(data, number):
    return len(data), set(data), number


@case
def forked_while_arguments_are_on_their_way(make):
    """What a forked child drops is not given back: the parent's workers have still to read it."""
    face = make(1)
    over = os.path.abspath("over")
    blocker = face.submit(wait_for_file, over)
    until(blocker.running)
    sizes = [1_000, 20_000, 300_000] * 10
    futures = [face.submit(length_of, bytes([n]) * size, n) for n, size in enumerate(sizes)]
    lambdas = [face.submit(lambda n=n, data=bytes(20_000): (len(data), n)) for n in range(10)]
    again = copy.copy(face)
    again.pool = face.pool.options(retries=1)
    again = again.submit(length_of, bytes(300_000), 0)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for task in face.pool._engine._dispatcher.tasks():  # whatever keeps them: all of it goes
                task.payload = task.function = None
            del face, futures, lambdas, again, blocker
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    touch(over)
    for n, size in enumerate(sizes):
        assert futures[n].result(SOON * 5) == (size, {n}, n)
    assert [future.result(SOON * 5) for future in lambdas] == [(20_000, n) for n in range(10)]
    assert again.result(SOON * 5) == (300_000, {0}, 0)
    still_works(face)
    face.wait()


def wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.001)


@case
def forked_by_multiprocessing(make):
    face = make()
    future = face.submit(sleep, 0.3)
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=identity, args=(1,))
        process.start()
        process.join(SOON * 5)
        assert process.exitcode == 0
    assert future.result(SOON) == 0.3
    still_works(face)
    face.wait()


@case
def forked_while_it_collects(make):
    face = make()
    over = threading.Event()

    def use():
        while not over.is_set():
            face.submit(identity, 1).result(SOON * 5)

    threads = [start_thread(use) for _ in range(3)]
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            faulthandler.dump_traceback_later(10, exit=True)
            code = 1
            try:
                raises(PoolClosed, face.submit, identity, 1)
                face.end()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    over.set()
    for thread in threads:
        thread.join(SOON * 5)
        assert not thread.is_alive()
    still_works(face)
    face.wait()


# The following say "ready" and are then interrupted or killed from outside.


@case
def waits_for_a_result(make):
    face = make()
    warm(face)
    future = face.submit(sleep, 1000)
    until(future.running)
    ready()
    future.result()


@case
def waits_for_a_map(make):
    face = make()
    warm(face)
    ready()
    list(face.map(sleep, itertools.repeat(0.001, 10**6)))


@case
def waits_in_a_with_block(make):
    face = make()
    with face.pool:
        warm(face)
        futures = [face.submit(sleep, 0.3) for _ in range(4)]
        ready()
        for future in futures:
            future.result()
        time.sleep(1000)


@case
def maps_for_ever(make):
    face = make()
    warm(face)
    ready()
    while True:
        list(face.map(identity, range(10_000)))


@case
def survives_interrupts(make):
    """Ctrl-C at every point of a call: the next call works."""
    face = make()
    warm(face)
    calls = interrupts = 0
    armed = False

    def interrupt(*_):
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    ready()
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        try:
            armed = True
            while time.monotonic() < end:
                assert face.submit(identity, calls).result(SOON * 4) == calls
                calls += 1
            armed = False
        except (KeyboardInterrupt, manycore.ManycoreError):
            armed = False
            interrupts += 1
    still_works(face)
    face.end()
    assert interrupts > 10
    assert calls > 100


@case
def survives_interrupts_in_all_it_does(make):
    """The same while calls are cancelled and maps are left half consumed: every call has an outcome, and it ends."""
    face = make()
    warm(face)
    assert manycore.WorkerDied  # imported before: an import that is interrupted is Python's to mend
    armed = False

    def interrupt(*_):
        if armed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = lambda _: None  # a finalizer that is interrupted says so
    ready()
    interrupts = cancelled = 0
    results = None
    futures = []
    end = time.monotonic() + 3.0
    while time.monotonic() < end:
        try:
            armed = True
            futures = [face.submit(sleep, 0.001) for _ in range(5)]
            cancelled += sum(future.cancel() for future in futures[1:])
            results = face.map(identity, range(50))
            assert next(results) == 0
            futures[0].result(SOON * 5)
            armed = False
        except (KeyboardInterrupt, manycore.ManycoreError, CancelledError):
            armed = False
            interrupts += 1
        results = None
        for future in futures:
            raises((LookupError, CancelledError, manycore.ManycoreError), outcome_of, future)
    still_works(face)
    face.wait()
    assert interrupts > 10
    assert cancelled > 10


def outcome_of(future):
    """No future stays without an outcome; a result is said as an error, too."""
    raise LookupError(future.result(SOON * 5))


@case
def holds_the_interpreter(make):
    face = make()
    warm(face)
    for _ in range(2):
        face.submit(forever)
    ready()
    forever()


def have_children(path):
    subprocess.Popen(["sleep", "1000"])
    multiprocessing.get_context("fork").Process(target=forever).start()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            touch(path)
            forever()
        os._exit(0)
    forever()


@case
def runs_tasks_that_have_children(make):
    face = make()
    paths = [os.path.abspath(f"child {number}") for number in range(2)]
    for path in paths:
        face.submit(have_children, path)
    until(lambda: all(os.path.exists(path) for path in paths))
    ready()
    forever()


@case
def starts_workers_without_end(make):
    face = make(2, max_tasks=1)
    warm(face)
    ready()
    while True:
        face.submit(identity, 1).result()


if __name__ == "__main__":
    main()
