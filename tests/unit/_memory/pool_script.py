"""A script without a main guard, run by `test_by_value`: code by value through real pools, processes and queues."""

import dataclasses
import functools

import manycore


@dataclasses.dataclass
class Record:
    value: int


FACTOR = 3
STATE = None


def inner(record):
    return Record(record.value * FACTOR)


def outer(n):
    with manycore.Pool(1) as nested:
        return nested.map(inner, [Record(i) for i in range(n)]), nested.apply(lambda: FACTOR)


def initialize(value):
    global STATE
    STATE = value


def state():
    return STATE


@functools.lru_cache
def cached(x):
    return x + FACTOR


def child(queue):
    queue.put(inner(Record(5)))
    queue.put(lambda: FACTOR)


def put(queue):
    queue.put(Record(7))


def get(queue):
    record = queue.get()
    return record, type(record) is Record


def expect(got, wanted):
    assert got == wanted, (got, wanted)


with manycore.Pool(1, initialize, (10,)) as pool:
    expect(pool.apply(state), 10)
    expect(pool.apply(outer, (3,)), ([Record(0), Record(3), Record(6)], 3))
    expect(pool.map(cached, [1, 2, 1]), [4, 5, 4])
    expect(pool.apply(cached.cache_info).hits, 1)
    FACTOR = 4
    expect(pool.apply(inner, (Record(2),)), Record(8))
    expect([pool.apply(lambda k=k: k * FACTOR) for k in range(3)], [0, 4, 8])

queue = manycore.Queue()
process = manycore.Process(target=child, args=(queue,))
process.start()
expect(queue.get(), Record(20))
expect(queue.get()(), 4)
process.join()
expect(process.exitcode, 0)

with manycore.Pool(2) as pool:  # from one worker to another
    pool.apply(put, (queue,))
    expect(pool.apply(get, (queue,)), (Record(7), True))
print("done")
