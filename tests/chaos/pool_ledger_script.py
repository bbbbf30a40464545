"""A ledger that tasks write: which of them ran, how often and where, while workers are killed or live for one task."""

import os
import random
import sys
import threading
import time
from functools import partial

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from face_script import (
    SOON,
    case,
    main,
    method,
    pid_of_worker,
    pids,
    start_thread,
    still_works,
    until,
    warm,
)
from pool_deaths_script import kill

import manycore
from manycore import WorkerDied

WHOLE = "MANYCORE_CHAOS_WHOLE" in os.environ


def log_and_sleep(path, number, seconds):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number} {os.getpid()}\n".encode())
    os.close(fd)
    time.sleep(seconds)
    return number


def numbers(path):
    """Which tasks ran, in order, as the ledger has it."""
    with open(path) as file:
        return [int(line.split()[0]) for line in file]


class Victims:
    """Whom to kill next, of a pool whose tasks write a ledger: one that has run a task, or one that may still start.

    Of the latter two at most before another has run a task. Were all killed, none would ever be ready where a start
    takes longer than the time between two kills, and the pool would be right to give up.
    """

    def __init__(self, face, path):
        self._face = face
        self._path = path
        self._position = 0
        self._seen = set()
        self._spare = 0
        self.killed = 0

    def kill_one(self):
        """Whether there was one."""
        if os.path.exists(self._path):
            with open(self._path) as file:
                file.seek(self._position)
                new = file.read()
            new = new[: new.rfind("\n") + 1]  # the last line may be on its way
            self._position += len(new)
            new = {int(line.split()[1]) for line in new.splitlines()} - self._seen
            if new:
                self._seen |= new
                self._spare = 2 if method() == "zygote" else 0
        workers = set(pids(self._face))
        if not self._spare:
            workers &= self._seen
        if not workers:
            return False
        one = random.choice(sorted(workers))
        self._spare -= one not in self._seen
        self._seen.discard(one)
        self.killed += 1
        kill(one)
        return True


@case
def at_random_instants(make):
    face = make()
    warm(face)
    path = os.path.abspath("ledger")
    calls = []
    future = []
    victims = Victims(face, path)
    for number in range(60):
        future.append(face.submit(log_and_sleep, path, number, random.choice([0, 0, 0.002])))
        future[-1].add_done_callback(lambda _, n=number: calls.append(n))
        time.sleep(random.uniform(0, 0.005))
        until(lambda: victims.kill_one() or future[-1].done())
    for number, one in enumerate(future):
        try:
            assert one.result(SOON * 5) == number
        except WorkerDied:
            pass
    still_works(face)
    face.wait()
    assert sorted(calls) == list(range(60))
    ran = numbers(path)
    assert len(ran) == len(set(ran)), "a task ran twice"
    print(f"{victims.killed} kills")


@case
def one_task_a_worker(make):
    face = make(2, max_tasks=1)
    path = os.path.abspath("ledger")
    tasks = 300 if method() == "zygote" else 60  # a start by another method takes a tenth of a second and more
    if WHOLE:
        tasks = 10_000 if method() in {"zygote", "fork"} else 1_000
    resolved = []
    futures = [face.submit(log_and_sleep, path, n, 0) for n in range(tasks)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, n=number: resolved.append(n))
    assert [future.result(SOON * 10) for future in futures] == list(range(tasks))
    one, other = face.submit(pid_of_worker).result(SOON), face.submit(pid_of_worker).result(SOON)
    assert one != other
    stats = face.pool.stats()
    face.wait()
    assert sorted(numbers(path)) == sorted(resolved) == list(range(tasks))
    assert stats.workers_started >= tasks
    assert stats.workers_died == 0
    print(f"{tasks} tasks, each once, in {stats.workers_started} workers")


def by_calls(face, path, tasks):
    """Runs the tasks one by one: the numbers of those that died, and of those that were resolved, as it came."""
    resolved, died = [], set()
    futures = []
    for number in range(tasks):
        future = face.submit(log_and_sleep, path, number, 0.0002)
        future.add_done_callback(lambda _, n=number: resolved.append(n))
        futures.append(future)
    for number, future in enumerate(futures):
        try:
            assert future.result(60) == number
        except WorkerDied:
            died.add(number)
    until(lambda: len(resolved) >= tasks)
    return died, resolved


def by_a_map(face, path, tasks):
    """The same, in chunks of a measured size."""
    results = list(face.pool.map(partial(log_and_sleep, path, seconds=0.0002), range(tasks), on_error="collect"))
    failures = [result for result in results if isinstance(result, manycore.Failure)]
    assert all(isinstance(failure.error, WorkerDied) for failure in failures)
    return {failure.item for failure in failures}, [
        result.item if isinstance(result, manycore.Failure) else result for result in results
    ]


def ledger(make, run, every, at_once=1, tasks=10_000):
    """Tasks while workers are killed: each runs at most once and is resolved once."""
    face = make()
    warm(face)
    path = os.path.abspath("ledger")
    over = threading.Event()
    victims = Victims(face, path)

    def killer():
        while not over.wait(every):
            for _ in range(at_once):
                victims.kill_one()

    started = time.monotonic()
    thread = start_thread(killer)
    died, resolved = run(face, path, tasks)
    over.set()
    thread.join()
    took = time.monotonic() - started
    still_works(face)
    stats = face.pool.stats()
    assert len(died) <= stats.workers_died
    face.wait()
    assert sorted(resolved) == list(range(tasks))
    ran = numbers(path)
    assert len(ran) == len(set(ran)), "a task ran twice"
    assert set(range(tasks)) - set(ran) <= died
    print(
        f"{tasks} tasks in {took:.1f} s, {len(ran)} begun, each once; {victims.killed} kills, {stats.workers_died} "
        f"workers died, {len(died)} tasks with them; {stats.workers_started} workers started"
    )


@case
def kills_through_calls(make):
    ledger(make, by_calls, 0.02)


@case
def kills_through_a_map(make):
    ledger(make, by_a_map, 0.02)


@case
def kills_of_all_workers_at_once(make):
    ledger(make, by_calls, 0.01, at_once=2, tasks=10_000 if WHOLE else 2_000)


if __name__ == "__main__":
    main()
