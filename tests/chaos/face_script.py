"""What the pool scripts share: one word for each face, and what must hold after every case."""

import faulthandler
import os
import random
import select
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError

import manycore

CASES = {}
SOON = 3.0  # seconds; a second is wanted, and the machine may be busy


def case(function):
    CASES[function.__name__] = function
    return function


class PoolFace:
    """`manycore.Pool`. `ENDED` is what calls raise that `end` has left undone."""

    ENDED = (manycore.PoolClosed,)

    def __init__(self, workers=2, initializer=None, initargs=(), max_tasks=None, **more):
        self.pool = manycore.Pool(workers, initializer, initargs, max_tasks, context(), **more)

    def submit(self, function, *args):
        return self.pool.apply_async(function, args)

    def map(self, function, items):
        return self.pool.imap(function, items)

    def wait(self):
        self.pool.close()
        self.pool.join()

    def end(self):
        self.pool.terminate()
        self.pool.join()


class ExecutorFace:
    """`manycore.ProcessPoolExecutor`."""

    ENDED = (manycore.PoolBroken, CancelledError)

    def __init__(self, workers=2, initializer=None, initargs=(), max_tasks=None, **more):
        self.pool = manycore.ProcessPoolExecutor(
            workers, context(), initializer, initargs, max_tasks_per_child=max_tasks, **more
        )

    def submit(self, function, *args):
        return self.pool.submit(function, *args)

    def map(self, function, items):
        return self.pool.map(function, items)

    def wait(self):
        self.pool.shutdown()

    def end(self):
        self.pool.kill_workers()
        self.pool.shutdown()


def method():
    """How workers start: as the command line says, else by default."""
    return sys.argv[4] if len(sys.argv) > 4 else "zygote"


def context():
    return None if method() == "zygote" else manycore.get_context(method())


FACES = {"pool": PoolFace, "executor": ExecutorFace}


def identity(value):
    return value


def pid_of_worker():
    return os.getpid()


def still_works(face, tasks=100):
    """Whatever happened: it runs 100 tasks."""
    futures = [face.submit(identity, n) for n in range(tasks)]
    assert [future.result(SOON * 5) for future in futures] == list(range(tasks))


def pids(face):
    return face.pool.stats().pids


def warm(face, workers=2):
    """All workers are there and idle."""
    face.submit(identity, 1).result()
    until(lambda: len(pids(face)) == workers)
    return pids(face)


def until(condition, within=20.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        select.poll().poll(1)


def prompt(started, within=SOON):
    took = time.monotonic() - started
    assert took < within, f"took {took:.2f} s"


def raises(kinds, function, *args):
    try:
        value = function(*args)
    except kinds as error:
        return error
    raise AssertionError(f"{value!r} and no {kinds}")


def ready():
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def start_thread(target, *args):
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def main():
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # so that a hang can be looked at
    name, face, seed = sys.argv[1:4]
    random.seed(seed)
    CASES[name](FACES[face])
