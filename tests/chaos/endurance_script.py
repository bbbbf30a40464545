"""A pool that lives long: a trickle of tasks of all kinds, then nothing. It must neither grow nor use the processor."""

import gc
import os
import select
import sys

import numpy as np

import manycore

FACE = sys.argv[1]
WARM, TASKS = 4_000, 12_000
GROWTH_BYTES = 1_500_000
IDLE_S = 4.0
IDLE_SHARE = 0.001  # of a core, all processes together


def work(n, data=None):
    if n % 50 == 7:
        raise ValueError(n)
    return data if n % 10 == 3 else n


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def used_ns(pid):
    used = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as file:
            used += int(file.read().split()[0])
    return used


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        direct = [int(one) for one in file.read().split()]
    return direct + [below for one in direct for below in children(one)]


def trickle(submit, numbers):
    small, large = np.arange(1_000), np.arange(20_000)  # beside the frame, and in the arena
    for n in numbers:
        data = large if n % 100 == 3 else small if n % 10 == 3 else None
        function = (lambda n, data, shift=n % 7: work(n + shift - shift, data)) if n % 20 == 0 else work
        try:
            submit(function, n, data)
        except ValueError:
            pass


def seen(pids):
    gc.collect()
    fds = len(os.listdir("/proc/self/fd"))
    return fds, sum(resident(pid) for pid in pids), resident(os.getpid())


pool = manycore.Pool(2) if FACE == "pool" else manycore.ProcessPoolExecutor(2)


def submit(function, *args):
    if FACE == "pool":
        return pool.apply_async(function, args).get(30)
    return pool.submit(function, *args).result(30)


barrier = manycore.Barrier(2)


def meet():  # so each worker has imported what a first task does
    barrier.wait(30)
    return np.arange(3).sum()


for first in [pool.submit(meet) for _ in range(2)]:
    first.result(30)
trickle(submit, range(WARM))
pids = pool.stats().pids
assert len(pids) == 2
before = seen(pids)
trickle(submit, range(WARM, WARM + TASKS))
after = seen(pids)
assert pool.stats().pids == pids
assert after[0] <= before[0] + len(pids), (before, after)  # a worker's first large result opens its arena
assert after[1] - before[1] < GROWTH_BYTES, (before, after)
assert after[2] - before[2] < GROWTH_BYTES, (before, after)

select.poll().poll(2_500)  # what is kept warm for the next task is given back
family = [os.getpid(), *children(os.getpid())]
assert set(pids) < set(family)
start = {pid: used_ns(pid) for pid in family}
select.poll().poll(IDLE_S * 1000)
idle = {pid: used_ns(pid) - start[pid] for pid in family}
assert sum(idle.values()) / 1e9 < IDLE_SHARE * IDLE_S, idle
print(before, after, idle)
pool.terminate() if FACE == "pool" else pool.shutdown()
