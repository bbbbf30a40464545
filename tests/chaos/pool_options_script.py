"""What tasks were promised holds through kills: times, cancelling, retries, priorities, memory; and sizes change."""

import copy
import os
import random
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from concurrent.futures import CancelledError

from face_script import (
    SOON,
    case,
    identity,
    main,
    method,
    pids,
    prompt,
    raises,
    start_thread,
    still_works,
    until,
    warm,
)

import manycore
from manycore import PoisonTask, PoolClosed, SoftTimeout, TaskTimeout, WorkerDied

MANY = int(os.environ.get("MANYCORE_CHAOS_MANY", "1"))  # how many times as much the random cases do


def promised(face, **options):
    """The face, with options."""
    other = copy.copy(face)
    other.pool = face.pool.options(**options)
    return other


def note(path, text):
    """One line of a ledger that any process may write to."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


def lines(path):
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def begin_and_wait(path):
    note(path, os.getpid())
    threading.Event().wait()


def held(face, name):
    """A task that runs for ever, and the pid of its worker."""
    path = os.path.abspath(name)
    before = len(lines(path))
    future = face.submit(begin_and_wait, path)
    until(lambda: len(lines(path)) > before)
    return future, int(lines(path)[-1])


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def wait_for_ever():
    threading.Event().wait()


def forever():
    all(iter(lambda: True, False))


def log_and_spin(path, number, seconds):
    note(path, number)
    spin(seconds)
    return number


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def count_calls(futures):
    """How often each future's callback has been called."""
    calls = [0] * len(futures)

    def told(number):
        calls[number] += 1

    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, n=number: told(n))
    return calls


def keep_killing(face, progress):
    """Kill a random worker whenever so many more items are done, until what is returned is called.

    With start methods that take long none is killed while one starts: the others would have done so many items again
    and again meanwhile, and the pool be right to give up.
    """
    patient = method() in ("spawn", "forkserver")
    over = threading.Event()
    chance = random.Random(1)

    def killer():
        done = 0
        while not over.wait(0.001):
            stats = face.pool.stats()
            if patient and stats.workers_busy < stats.workers:  # there is work for all who are ready
                continue
            if stats.items_done >= done + progress and stats.pids:
                done = stats.items_done
                kill(chance.choice(stats.pids))

    thread = start_thread(killer)

    def stop():
        over.set()
        thread.join()

    return stop


# Timeouts


@case
def a_timeout_kills_one_worker(make):
    face = make()
    other, pid = held(face, "other")
    for work in (forever, wait_for_ever, ignore_everything):
        started = time.monotonic()
        error = raises(TaskTimeout, promised(face, timeout=0.1).submit(work).result, SOON * 5)
        prompt(started)
        assert "0.1 s" in str(error)
    assert not other.done()
    assert pid in pids(face)
    still_works(face)
    face.end()


def ignore_everything():
    for signum in range(1, 64):
        try:
            signal.signal(signum, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    threading.Event().wait()


@case
def timeouts_at_random_instants(make):
    """Tasks that take about as long as they may: each has its result or is late, and none is hit for another's time."""
    face = make()
    path = os.path.abspath("ledger")
    late = promised(face, timeout=0.02)
    tasks = 60 * MANY
    futures = [late.submit(log_and_spin, path, n, random.uniform(0.01, 0.025)) for n in range(tasks)]
    calls = count_calls(futures)
    timeouts = 0
    for number, future in enumerate(futures):
        try:
            assert future.result(SOON * 10) == number
        except TaskTimeout:
            timeouts += 1
    assert timeouts < tasks
    until(lambda: calls == [1] * tasks)
    ran = lines(path)
    assert len(ran) == len(set(ran)), "a task ran twice"
    assert len(ran) >= tasks - timeouts
    died = face.pool.stats().workers_died
    assert died == timeouts, f"{died} workers died, {timeouts} tasks were late"
    still_works(face)
    face.wait()


def clean_up(path):
    try:
        time.sleep(60)
    except SoftTimeout:
        note(path, "clean")
        raise


def swallow():
    while True:
        try:
            spin(60)
        except SoftTimeout:
            pass


@case
def a_soft_timeout_comes_first(make):
    face = make()
    path = os.path.abspath("ledger")
    soft = promised(face, soft_timeout=0.05)
    before = set(warm(face))
    for work in (lambda: time.sleep(60), lambda: spin(60), wait_for_ever):
        started = time.monotonic()
        raises(SoftTimeout, soft.submit(work).result, SOON * 5)
        prompt(started)
    raises(SoftTimeout, soft.submit(clean_up, path).result, SOON * 5)
    assert lines(path) == ["clean"]
    assert set(pids(face)) == before, "no worker has died of it"
    both = promised(face, soft_timeout=0.05, timeout=0.3)
    error = raises(TaskTimeout, both.submit(swallow).result, SOON * 5)
    assert not isinstance(error, SoftTimeout)
    still_works(face)
    face.wait()


@case
def soft_timeouts_at_random_instants(make):
    """The exception comes inside the call, or not at all: what the worker does between two calls goes on."""
    face = make()
    soft = promised(face, soft_timeout=0.003)
    before = set(warm(face))
    tasks = 400 * MANY
    futures = [soft.submit(spin, random.uniform(0.002, 0.004)) for _ in range(tasks)]
    calls = count_calls(futures)
    late = 0
    for future in futures:
        try:
            assert 0.002 <= future.result(SOON * 10) <= 0.004
        except SoftTimeout:
            late += 1
    until(lambda: calls == [1] * tasks)
    assert 0 < late < tasks
    assert set(pids(face)) == before
    still_works(face)
    face.wait()


# Cancelling what runs


@case
def cancelling_kills_one_worker(make):
    face = make()
    other, other_pid = held(face, "other")
    for _ in range(10):
        future, pid = held(face, "one")
        assert not future.cancel()
        started = time.monotonic()
        assert future.cancel(running=True)
        assert future.cancelled()
        prompt(started)
        raises(CancelledError, future.result, 0)
        until(lambda dead=pid: dead not in pids(face), SOON)
        assert face.submit(identity, 5).result(SOON * 5) == 5
    assert not other.done()
    assert other_pid in pids(face)
    assert other.cancel(running=True)
    still_works(face)
    done = face.submit(identity, 1)
    assert done.result(SOON) == 1
    assert not done.cancel(running=True)
    face.wait()


@case
def cancelling_at_random_instants(make):
    face = make()
    warm(face)
    path = os.path.abspath("ledger")
    futures, cancelled = [], []
    for number in range(150 * MANY):
        futures.append(face.submit(log_and_spin, path, number, random.uniform(0, 0.002)))
        spin(random.uniform(0, 0.003))
        victim = random.choice(futures[-3:])
        if victim.cancel(running=True):
            cancelled.append(victim)
    calls = count_calls(futures)
    for number, future in enumerate(futures):
        if future in cancelled:
            raises(CancelledError, future.result, SOON * 5)
        else:
            assert future.result(SOON * 5) == number
    until(lambda: calls == [1] * len(futures))
    ran = [int(line) for line in lines(path)]
    assert len(ran) == len(set(ran)), "a task ran twice"
    assert cancelled
    still_works(face)
    face.wait()


# Retries


@case
def retries_through_kills(make):
    """With enough retries all is done, whoever is killed; each future is resolved once."""
    face = make()
    warm(face)
    path = os.path.abspath("ledger")
    again = promised(face, retries=100, retry_on=WorkerDied)
    stop = keep_killing(face, 4)
    tasks = 200 * MANY
    futures = [again.submit(log_and_spin, path, n, 0.002) for n in range(tasks)]
    calls = count_calls(futures)
    assert [future.result(SOON * 20) for future in futures] == list(range(tasks))
    stop()
    until(lambda: calls == [1] * tasks)
    stats = face.pool.stats()
    assert set(map(int, lines(path))) == set(range(tasks))
    assert len(lines(path)) <= tasks + stats.retries
    assert stats.retries <= stats.workers_died
    still_works(face)
    face.wait()


def die(path, times):
    note(path, "begun")
    if len(lines(path)) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(lines(path))


@case
def poison(make):
    face = make()
    queued = [face.submit(identity, n) for n in range(50)]
    again = promised(face, retries=5)
    assert again.submit(die, os.path.abspath("once"), 1).result(SOON * 5) == 2
    error = raises(PoisonTask, again.submit(die, os.path.abspath("twice"), 9).result, SOON * 5)
    assert len(lines("twice")) == 2
    assert len({certificate.pid for certificate in error.certificates}) == 2
    assert all(certificate.exitcode == -signal.SIGKILL for certificate in error.certificates)
    assert error.certificate is error.certificates[-1]
    stubborn = promised(face, retries=5, retry_on=WorkerDied)
    assert stubborn.submit(die, os.path.abspath("often"), 4).result(SOON * 5) == 5
    error = raises(PoisonTask, stubborn.submit(die, os.path.abspath("always"), 9).result, SOON * 5)
    assert len(error.certificates) == len(lines("always")) == 6
    never = promised(face, retries=5, retry_on=ValueError)
    error = raises(WorkerDied, never.submit(die, os.path.abspath("never"), 9).result, SOON * 5)
    assert not isinstance(error, PoisonTask)
    assert len(lines("never")) == 1
    assert [future.result(SOON) for future in queued] == list(range(50))

    def item(n):
        if n == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    results = again.map(item, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    raises(PoisonTask, next, results)
    still_works(face)
    face.wait()


def read_twice(path, data):
    note(path, "begun")
    if len(lines(path)) < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(data[:3]), len(data)


@case
def a_large_argument_is_there_for_the_retry(make):
    face = make()
    data = bytearray(b"old" * 1_000_000)
    future = promised(face, retries=1).submit(read_twice, os.path.abspath("ledger"), data)
    data[:3] = b"new"
    assert future.result(SOON * 5) == (b"old", 3_000_000)
    still_works(face)
    face.wait()


def fail_until(path, times):
    note(path, time.monotonic())
    if len(lines(path)) <= times:
        raise ValueError(path)
    return times


@case
def backoffs(make):
    face = make()
    path = os.path.abspath("ledger")
    asked = []

    def wait(attempt):
        asked.append((attempt, threading.current_thread()))
        return 0.05 * attempt

    future = promised(face, retries=3, backoff=wait).submit(fail_until, path, 3)
    still_works(face)  # meanwhile
    assert future.result(SOON * 5) == 3
    times = [float(line) for line in lines(path)]
    for attempt, (before, after) in enumerate(zip(times, times[1:]), 1):
        assert after - before >= 0.05 * attempt
    assert [attempt for attempt, _ in asked] == [1, 2, 3]

    doubling = promised(face, retries=2, backoff=0.1)
    assert doubling.submit(fail_until, os.path.abspath("doubling"), 2).result(SOON * 5) == 2
    times = [float(line) for line in lines("doubling")]
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1

    def broken(attempt):
        raise LookupError(attempt)

    raises(LookupError, promised(face, retries=2, backoff=broken).submit(fail_until, path + "2", 9).result, SOON)
    future = promised(face, retries=2, backoff=1000).submit(fail_until, path + "3", 9)
    until(lambda: lines(path + "3"))
    still_works(face)
    until(future.cancel)
    last = promised(face, retries=1, backoff=0.2).submit(fail_until, path + "4", 1)
    waiting = promised(face, retries=1, backoff=1000).submit(fail_until, path + "5", 1)
    until(waiting.cancel)
    face.wait()  # what waits for its retry is done before the end
    assert last.result(0) == 1
    face = make()
    waiting = promised(face, retries=1, backoff=1000).submit(fail_until, path + "6", 1)
    until(lambda: lines(path + "6"))
    started = time.monotonic()
    face.end()
    prompt(started)
    raises(face.ENDED, waiting.result, 0)


# The rest


@case
def priorities(make):
    face = make(1)
    path = os.path.abspath("ledger")
    blocker = face.submit(log_and_spin, path, "first", 0.2)
    until(lambda: lines(path))
    groups = {}
    for priority in (-1, 0, 5, 0, 1, -1, 5):
        with_it = promised(face, priority=priority) if priority else face
        for n in range(30):
            name = f"{priority}:{len(groups.setdefault(priority, []))}"
            groups[priority].append((name, with_it.submit(log_and_spin, path, name, 0)))
    assert blocker.result(SOON) == "first"
    for group in groups.values():
        for name, future in group:
            assert future.result(SOON) == name
    expected = [name for priority in (5, 1, 0, -1) for name, _ in groups[priority]]
    assert lines(path) == ["first", *expected]
    still_works(face)
    face.wait()


def take(size):
    return len(bytearray(size))


@case
def memory_limits(make):
    face = make()
    before = set(warm(face))
    limited = promised(face, memory_limit=50_000_000)
    for _ in range(3):
        raises(MemoryError, limited.submit(take, 100_000_000).result, SOON * 5)
        assert limited.submit(take, 10_000_000).result(SOON) == 10_000_000
        assert face.submit(take, 100_000_000).result(SOON * 5) == 100_000_000
    assert set(pids(face)) == before
    still_works(face)
    face.wait()


@case
def sizes_under_kills(make):
    face = make(2)
    warm(face)
    path = os.path.abspath("ledger")
    stop = keep_killing(face, 4)
    futures = []
    for number in range(300 * MANY):
        futures.append(face.submit(log_and_spin, path, number, 0.001))
        if number % 10 == 0:
            face.pool.resize(random.randint(1, 5))
            spin(random.uniform(0, 0.01))
    calls = count_calls(futures)
    for number, future in enumerate(futures):
        try:
            assert future.result(SOON * 10) == number
        except WorkerDied:
            pass
    stop()
    until(lambda: calls == [1] * len(futures))
    ran = [int(line) for line in lines(path)]
    assert len(ran) == len(set(ran)), "a task ran twice"
    for size in (4, 1, 3):
        face.pool.resize(size)
        until(lambda: len(pids(face)) == size)
        still_works(face)
    face.wait()


@case
def a_smaller_size_ends_no_task(make):
    face = make(4)
    path = os.path.abspath("ledger")
    running = [face.submit(log_and_spin, path, n, 0.2) for n in range(4)]
    until(lambda: len(lines(path)) == 4)
    queued = [face.submit(identity, n) for n in range(2000)]
    face.pool.resize(1)
    assert [future.result(SOON * 5) for future in running] == list(range(4))
    until(lambda: len(pids(face)) == 1, SOON)
    assert [future.result(SOON * 5) for future in queued] == list(range(2000))
    assert face.pool.stats().workers_died == 0
    face.wait()
    raises(PoolClosed, face.pool.resize, 2)


@case
def idle_workers_leave_and_come_back(make):
    if hasattr(make, "__mro__") and make.__name__ == "PoolFace":
        pool = manycore.Pool(3, idle_timeout=0.1)
    else:
        pool = manycore.ProcessPoolExecutor(3, idle_timeout=0.1)
    face = make(1)
    face.end()
    face.pool = pool
    still_works(face)
    for _ in range(3):
        until(lambda: not pool.stats().workers)  # and not their pids: a result may be here before its worker's pid
        started = time.monotonic()
        assert face.submit(identity, 1).result(SOON * 5) == 1
        prompt(started)
        assert pool.stats().workers <= 1  # no more than there is work for; it may have left by now
        still_works(face)
    for _ in range(8 * MANY):  # as they leave
        time.sleep(random.uniform(0.09, 0.11))
        assert face.submit(identity, 2).result(SOON * 5) == 2
    assert face.pool.stats().workers_died == 0
    face.wait()


if __name__ == "__main__":
    main()
