"""Workers die: idle, busy, at random instants, in every way that a task can bring about."""

import ctypes
import importlib
import itertools
import mmap
import os
import random
import resource
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from face_script import (
    SOON,
    case,
    identity,
    main,
    method,
    pid_of_worker,
    pids,
    prompt,
    raises,
    still_works,
    until,
    warm,
)

import manycore
from manycore import WorkerDied


def say_and_wait(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    threading.Event().wait()


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def big(size):
    return os.urandom(1) * size


def log_and_sleep(path, number, seconds):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    time.sleep(seconds)
    return number


def log_and_be_big(path, number):
    log_and_sleep(path, number, 0)
    return big(20_000_000)


def read(path):
    with open(path) as file:
        return file.read()


def kill(pid):
    """It may be gone already: snapshots of a pool's workers are late."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def held(face, name):
    """A task that runs for ever, and the pid of its worker."""
    path = os.path.abspath(name)
    future = face.submit(say_and_wait, path)
    until(lambda: os.path.exists(path) and os.path.getsize(path))
    return future, int(read(path))


def dies(future):
    started = time.monotonic()
    error = raises(WorkerDied, future.result, SOON * 5)
    prompt(started)
    return error


@case
def idle_worker(make):
    face = make()
    for _ in range(10):
        kill(random.choice(warm(face)))
        still_works(face, 20)
    face.wait()


@case
def all_idle_workers(make):
    face = make()
    for _ in range(5):
        before = warm(face)
        for pid in before:
            kill(pid)
        still_works(face)
        until(lambda old=set(before): len(pids(face)) == 2 and not old & set(pids(face)))
    face.wait()


@case
def busy_worker_fails_alone(make):
    face = make()
    first, one = held(face, "one")
    second, two = held(face, "two")
    queued = [face.submit(identity, n) for n in range(50)]
    os.kill(one, signal.SIGKILL)
    error = dies(first)
    assert error.certificate.exitcode == -signal.SIGKILL
    assert error.certificate.pid == one
    assert "say_and_wait" in str(error)
    assert "SIGKILL" in str(error)
    assert [future.result(SOON * 5) for future in queued] == list(range(50))
    assert not second.done()
    os.kill(two, signal.SIGKILL)
    dies(second)
    still_works(face)
    face.wait()


@case
def all_busy_workers(make):
    face = make(4)
    held_ones = [held(face, f"{n}") for n in range(4)]
    for _, pid in held_ones:
        kill(pid)
    for future, _ in held_ones:
        dies(future)
    still_works(face)
    face.wait()


@case
def in_the_middle_of_a_big_result(make):
    face = make()
    warm(face)
    for _ in range(12):
        future = face.submit(big, 20_000_000)
        until(lambda f=future: f.running() or f.done())
        time.sleep(random.uniform(0, 0.02))
        for pid in pids(face):
            kill(pid)
        try:
            assert len(future.result(SOON * 5)) == 20_000_000
        except WorkerDied:
            pass
        assert len(face.submit(big, 1_000_000).result(SOON * 5)) == 1_000_000
    still_works(face)
    face.wait()


@case
def replacements_die_while_they_start(make):
    face = make()
    warm(face)
    futures = [face.submit(sleep, 0.005) for _ in range(200)]
    for _ in range(4):  # more in a row, none ever ready, and the pool would be right to give up
        for pid in pids(face):
            kill(pid)
        until(lambda: face.pool.stats().workers_died >= 1)
        time.sleep(random.uniform(0, 0.01))
    died = 0
    for future in futures:
        try:
            assert future.result(SOON * 5) == 0.005
        except WorkerDied:
            died += 1
    assert died <= 8
    still_works(face)
    face.wait()


def at_work(face):
    """The workers that run tasks: those that have started."""
    return {future.result(SOON * 5) for future in [face.submit(pid_of_worker) for _ in range(20)]}


@case
def a_replacement_dies_while_it_starts(make):
    face = make()
    for _ in range(3):
        until(lambda: len(at_work(face)) == 2)
        before = set(pids(face))
        kill(before.pop())
        until(lambda old=before: len(pids(face)) == 2 and set(pids(face)) - old)
        (replacement,) = set(pids(face)) - before
        time.sleep(random.uniform(0, 0.002 if method() in {"zygote", "fork"} else 0.06))  # a start takes about as long
        kill(replacement)
        still_works(face)
    face.wait()


def leave_with(code):
    os._exit(code)


@case
def os_exit(make):
    face = make()
    for code in (0, 7):
        error = dies(face.submit(leave_with, code))
        assert error.certificate.exitcode == code
    still_works(face)
    face.wait()


def segfault():
    ctypes.string_at(0)


def overflow_the_stack():
    kind = ctypes.CFUNCTYPE(None)

    def deeper():
        callback()

    callback = kind(deeper)
    sys.setrecursionlimit(10**9)
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    callback()


def bus_error():
    fd = os.memfd_create("x")
    os.ftruncate(fd, 4096)
    area = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    return area[0]


@case
def crashes(make):
    face = make()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for crash, signum in (
        (segfault, signal.SIGSEGV),
        (os.abort, signal.SIGABRT),
        (bus_error, signal.SIGBUS),
        (overflow_the_stack, signal.SIGSEGV),
    ):
        error = dies(face.submit(crash))
        assert error.certificate.exitcode == -signum, (crash, error)
        assert signum.name in str(error)
    still_works(face)
    face.wait()


@case
def in_the_middle_of_a_map(make):
    face = make()
    warm(face)

    def item(n):
        if n == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    if hasattr(face.pool, "outcomes"):
        done = list(face.pool.outcomes(item, range(1000)))
        assert [one.index for one in done] == list(range(1000))
        assert [one.index for one in done if one.error is not None] == [500]
        assert isinstance(done[500].error, WorkerDied)
        assert "item(500)" in str(done[500].error)
        assert face.pool.map(item, range(1000), on_error="skip") == [n for n in range(1000) if n != 500]
        assert isinstance(face.pool.map(item, range(1000), on_error="collect")[500], manycore.Failure)
    results = face.map(item, range(1000))
    assert list(itertools.islice(results, 500)) == list(range(500))
    raises(WorkerDied, next, results)
    still_works(face)
    face.wait()


@case
def stopped_worker_does_not_hold_up_the_end(make):
    face = make()
    warm(face)
    _, pid = held(face, "one")
    os.kill(pid, signal.SIGSTOP)
    still_works(face)
    started = time.monotonic()
    face.end()
    prompt(started)


@case
def stopped_and_killed(make):
    face = make()
    first, one = held(face, "one")
    second, two = held(face, "two")
    os.kill(one, signal.SIGSTOP)
    os.kill(two, signal.SIGKILL)
    dies(second)
    started = time.monotonic()
    face.end()
    prompt(started)
    raises(face.ENDED, first.result, 1)


@case
def stopped_and_continued(make):
    face = make()
    path = os.path.abspath("ledger")
    future = face.submit(log_and_sleep, path, 1, 1.5)
    until(lambda: os.path.exists(path))
    workers = pids(face)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    raises(TimeoutError, future.result, 0.5)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    assert future.result(SOON * 5) == 1
    still_works(face)
    face.wait()
    assert read(path) == "1\n"


@case
def stopped_in_the_middle_of_a_big_result(make):
    face = make()
    path = os.path.abspath("ledger")
    warm(face)
    for number in range(3):
        future = face.submit(log_and_be_big, path, number)
        until(lambda n=number: os.path.exists(path) and read(path).count("\n") == n + 1)
        time.sleep(random.uniform(0, 0.02))
        stopped = pids(face)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert len(future.result(0.05)) == 20_000_000
        except TimeoutError:
            pass
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert len(future.result(SOON * 5)) == 20_000_000
    still_works(face)
    face.wait()
    assert read(path) == "0\n1\n2\n"


def forever(_):
    all(itertools.repeat(True))


@case
def stuck_in_c(make):
    face = make()
    future = face.submit(forever, 1)
    until(future.running)
    still_works(face)
    started = time.monotonic()
    face.end()
    prompt(started)
    raises(face.ENDED, future.result, 1)


@case
def stuck_in_c_with_a_timeout(make):
    pool = make().pool
    if not hasattr(pool, "outcomes"):
        return  # only maps of pools take one
    for _ in range(3):  # a second deadline, after a time without any, counts as well
        started = time.monotonic()
        found = pool.map(lambda n: forever(n) if n == 3 else n, range(6), timeout=0.3, on_error="collect")
        prompt(started)
        assert [n for n in found if not isinstance(n, manycore.Failure)] == [0, 1, 2, 4, 5]
        assert isinstance(found[3].error, manycore.TaskTimeout)
        pool.map(identity, range(10), timeout=0.6)
        time.sleep(0.7)
    pool.terminate()


def ignore_sigterm():
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
    threading.Event().wait()


@case
def deaf_to_signals(make):
    face = make()
    future = face.submit(ignore_sigterm)
    until(future.running)
    still_works(face)
    started = time.monotonic()
    face.end()
    prompt(started)


def fork_and_wait(path):
    if os.fork() == 0:
        os.setsid()
        with open(path + " of the grandchild", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    say_and_wait(path)


@case
def grandchild_that_holds_every_descriptor(make):
    face = make()
    path = os.path.abspath("pid")
    future = face.submit(fork_and_wait, path)
    paths = (path, path + " of the grandchild")
    until(lambda: all(os.path.exists(one) and os.path.getsize(one) for one in paths))
    worker, grandchild = (int(read(one)) for one in paths)
    os.kill(worker, signal.SIGKILL)
    dies(future)
    os.kill(grandchild, 0)  # it lives
    still_works(face)
    face.wait()


def storm():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


@case
def storm_of_signals(make):
    storm()
    face = make(2, storm)
    for size in (10, 1_000_000, 20_000_000):
        futures = [face.submit(big, size) for _ in range(4)]
        assert [len(future.result(SOON * 5)) for future in futures] == [size] * 4
        assert face.submit(len, big(size)).result(SOON * 5) == size
    assert list(face.map(identity, range(1000))) == list(range(1000))
    kill(random.choice(warm(face)))
    still_works(face)
    face.wait()
    signal.setitimer(signal.ITIMER_REAL, 0)


def close_descriptors():
    os.closerange(3, 10_000)


@case
def descriptors_closed(make):
    face = make()
    warm(face)
    face.submit(close_descriptors).result(SOON * 5)
    still_works(face)
    assert face.submit(lambda: 5).result(SOON * 5) == 5
    assert [face.submit(lambda n=n: n).result(SOON * 5) for n in range(20)] == list(range(20))
    face.end()


def limited_memory():
    resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
    return bytearray(1 << 30)


@case
def out_of_memory(make):
    face = make()
    raises(MemoryError, face.submit(limited_memory).result, SOON * 5)
    still_works(face)
    face.wait()


def drop_everything():
    importlib.import_module(identity.__module__)  # which is deeper than what follows allows
    sys.setrecursionlimit(60)
    os.chdir("/")
    os.environ.clear()
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    sys.stdout = sys.stderr = None


@case
def worker_turned_upside_down(make):
    face = make()
    warm(face)
    for _ in range(4):
        face.submit(drop_everything).result(SOON * 5)
    still_works(face)
    face.wait()


@case
def one_task_a_worker_that_is_killed(make):
    face = make(2, max_tasks=1)
    futures = [face.submit(leave_with if n % 10 == 0 else identity, n) for n in range(100)]
    for n, future in enumerate(futures):
        if n % 10 == 0:
            dies(future)
        else:
            assert future.result(SOON * 5) == n
    face.wait()


if __name__ == "__main__":
    main()
