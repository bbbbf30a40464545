"""A script without a main guard, run by `test_by_value`: everything that `__main__` may hold, sent to a worker.

It also runs from standard input, and under `exec`. It prints "done" at its end.
"""

import abc
import collections
import concurrent.futures
import dataclasses
import enum
import functools
import os
import sys
import threading
import typing
from logging import lastResort
from sys import stderr as errors

sys.path.insert(0, os.environ["MANYCORE_TEST_DIRECTORY"])
from codec_worker import Worker  # noqa: E402

ITEMS = [1, 2]
COUNT = None
LOCK = threading.Lock()


@dataclasses.dataclass
class Record:
    a: int
    b: list = dataclasses.field(default_factory=list)

    def total(self):
        return self.a + helper(1)


class Derived(Record):
    def total(self):
        return super().total() + 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    a: int


class Color(enum.Enum):
    RED = 1
    GREEN = (2, 3)
    ALSO_RED = 1

    def nice(self):
        return self.name.lower()


class Planet(enum.Enum):
    EARTH = (1, 2)

    def __init__(self, mass, radius):
        self.mass = mass


class Level(enum.IntFlag):
    LOW = 1
    HIGH = 2


class Base(abc.ABC):
    registry = {}

    def __init_subclass__(cls, kind, **rest):
        super().__init_subclass__(**rest)
        Base.registry[kind] = cls

    @abc.abstractmethod
    def f(self): ...

    @property
    def p(self):
        return 3

    @functools.cached_property
    def cached(self):
        return 4

    @classmethod
    def name(cls):
        return cls.__name__

    @staticmethod
    def double(x):
        return x * 2


class Sub(Base, kind="sub"):
    __slots__ = ("q",)

    def f(self):
        return super().p + 1


class Meta(type):
    def __new__(metacls, name, bases, namespace, *, tag):
        cls = super().__new__(metacls, name, bases, namespace)
        cls.tag = tag
        return cls

    def __init__(cls, name, bases, namespace, *, tag):
        super().__init__(name, bases, namespace)


class Tagged(metaclass=Meta, tag="t"):
    def tagged(self):
        return self.tag


class Pair(typing.NamedTuple):
    x: int
    y: int = 3


Point = collections.namedtuple("Point", "a b")
T = typing.TypeVar("T")
UserId = typing.NewType("UserId", int)


class Movie(typing.TypedDict):
    title: str


class Box(typing.Generic[T]):
    def get(self) -> T:
        return 5


class Node:
    def __init__(self, child=None):
        self.child = child
        self.kind = Node


def helper(x):
    return x + len(ITEMS)


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


@functools.lru_cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def deco(f):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args) + 100

    return wrapper


@deco
def decorated(x):
    """Doc."""
    return x + 1


def counter():
    n = 0

    def inc():
        nonlocal n
        n += 1
        return n

    def get():
        return n

    return lambda: (inc(), inc(), get())


def recursive_closure():
    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    return fact


def init(value):
    global COUNT
    COUNT = value


def read_count():
    return COUNT


def modules():
    return concurrent.futures.ThreadPoolExecutor.__name__, os.path.basename("a/b")


def make():
    return Record(3, [4]), Sub(), Color.GREEN, Pair(1), Point(1, 2), Tagged(), Slotted(1), Node(Node()), fib


class Call:
    def __init__(self, k):
        self.k = k

    def __call__(self, x):
        return x * self.k

    def method(self, x):
        return x + self.k


@functools.singledispatch
def dispatch(x):
    return "object"


@dispatch.register
def _(x: int):
    return "int"


def keywords(a, b=2, *, c=3):
    return a, b, c


def new_code():
    global fresh

    def fresh(x):
        return x * helper(0)

    return fresh


def local_class():
    class Local:
        def f(self):
            return __class__.__name__

    return Local


def expect(got, wanted):
    assert got == wanted, (got, wanted)


with Worker() as worker:
    call = worker.call
    expect(call(lambda x: x + 1, 2), 3)
    expect([call(lambda x: x * k, 2) for k in range(3)], [0, 2, 4])
    expect(call(helper, 1), 3)
    ITEMS = [1, 2, 3]
    expect(call(helper, 1), 4)
    ITEMS.append(4)
    expect(call(helper, 1), 5)
    call(lambda: ITEMS.append(5))  # what a worker changed in place stays, while the parent's is unchanged
    expect(call(helper, 1), 6)
    ITEMS = [1, 2, 3]
    expect(call(helper, 1), 4)
    expect(call(lambda: sorted(globals().keys() & {"ITEMS", "helper", "COUNT", "Color"})), ["ITEMS", "helper"])
    expect(call(even, 10), True)
    expect(call(fib, 30), 832040)
    expect(call(decorated, 1), 102)
    expect(call(lambda: decorated.__doc__), "Doc.")
    expect(call(counter()), (1, 2, 2))
    expect(call(recursive_closure(), 5), 120)

    # the initializer idiom: what the worker set stays, whatever the parent's own says
    call(init, 5)
    expect(call(read_count), 5)
    COUNT = 7
    expect(call(read_count), 5)

    expect(call(modules), ("ThreadPoolExecutor", "b"))
    expect(call(keywords, 1), (1, 2, 3))
    expect(call(functools.partial(keywords, c=5), 1), (1, 2, 5))

    made = call(make)
    expect([type(each) for each in made[:8]], [Record, Sub, Color, Pair, Point, Tagged, Slotted, Node])
    assert made[2] is Color.GREEN
    assert made[7].kind is Node
    assert made[8] is fib
    expect(made[0], Record(3, [4]))

    expect(call(lambda record: record.total(), Record(5)), 9)
    expect(call(Record(6).total), 10)
    expect(call(lambda: Derived(1).total()), 1005)
    expect(call(lambda s: (s.f(), s.name(), Base.double(4), isinstance(s, Base)), Sub()), (4, "Sub", 8, True))
    expect(call(lambda: Base.registry["sub"] is Sub), True)
    expect(call(Sub.double, 4), 8)
    expect(call(Sub.name), "Sub")
    expect(call(lambda: type(Sub.__dict__["q"]).__name__), "member_descriptor")
    expect(call(Call(3), 4), 12)
    expect(call(Call(3).method, 4), 7)
    expect(call(functools.partial(Call(3).method, 6)), 9)
    expect(call(lambda c: (c.nice(), c is Color.GREEN), Color.GREEN), ("green", True))
    expect(call(lambda: Color.ALSO_RED is Color.RED), True)
    expect(call(lambda: (Planet.EARTH.mass, Planet.EARTH.value)), (1, (1, 2)))
    expect(call(lambda: (Level.LOW | Level.HIGH).value), 3)
    assert call(lambda: Level.LOW | Level.HIGH) == Level.LOW | Level.HIGH
    expect(call(lambda: dataclasses.fields(Record)[0].default is dataclasses.MISSING), True)
    expect(call(lambda: dataclasses.replace(Record(1), a=4)), Record(4))
    expect(call(lambda: (dispatch(1), dispatch("a"))), ("int", "object"))
    expect(call(lambda: Box[int]().get()), 5)
    expect(call(lambda: Movie(title="x")), {"title": "x"})
    expect(call(lambda: UserId(3)), 3)
    expect(call(lambda: Tagged().tagged()), "t")
    expect(call(lambda m: sorted(m), Movie(title="x").keys()), ["title"])

    Local = local_class()
    expect(call(lambda: Local().f()), "Local")
    assert type(call(lambda: Local())) is Local

    # functions: the parent's own come back, the worker's own come by value
    assert call(lambda: helper) is helper
    fresh_here = call(new_code)
    expect(fresh_here(2), 6)

    # one class per worker, whichever way it arrived
    call(lambda: globals().__setitem__("seen", Record))
    expect(call(lambda record: type(record) is globals()["seen"], Record(1)), True)

    # a task's arguments may be of the parent's own classes while its function is of an importable module
    expect(call(sorted, [Pair(2), Pair(1)]), [Pair(1), Pair(2)])
    expect(call(isinstance, Sub(), Base), True)
    try:
        call(lambda: {}["absent"])
    except RuntimeError as error:
        expect("KeyError: 'absent'" in str(error), True)

    # what cannot be pickled is the worker's own where it can be imported, under whatever name
    expect(call(lambda: (lastResort is sys.modules["logging"].lastResort, errors is sys.stderr)), (True, True))
    expect(call(lambda: (lastResort is sys.modules["logging"].lastResort, errors.fileno())), (True, 2))
    try:
        call(lambda: LOCK)
    except Exception as error:
        expect("while pickling the global 'LOCK' of" in str(error), True)
    else:
        raise AssertionError

    # redefinition, as a notebook does it
    def helper(x):
        return "new"

    class Call:
        def __call__(self, x):
            return "new class"

    expect(call(lambda: helper(1)), "new")
    expect(call(Call(), 1), "new class")
    old = Record

    @dataclasses.dataclass
    class Record:
        z: int = 0

    expect(call(lambda: Record()), Record())
    expect(type(call(lambda o: o, old(1))), old)
print("done")
