"""The functions that workers run. Importable by name, so that no peer is slowed by pickling them by value.

NumPy is imported inside the functions that need it: a worker that runs no-ops must not pay for it.
"""

from __future__ import annotations

import os
import time
from typing import Any


def noop(*_args: object) -> None:
    """Does nothing."""


def square(x: int) -> int:
    """Returns x * x."""
    return x * x


def spin(seconds: float) -> float:
    """Keeps a core busy for `seconds`."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def stamp(seconds: float) -> float:
    """Keeps a core busy for `seconds` and returns when it ended, on the machine's monotonic clock."""
    spin(seconds)
    return time.monotonic()


def pid_after(seconds: float) -> int:
    """Sleeps for `seconds` and returns the worker's process id."""
    time.sleep(seconds)
    return os.getpid()


def ends_of(array: Any) -> float:
    """Returns first plus last element, which proves that the array arrived."""
    return float(array[0]) + float(array[-1])


def ends_of_shared(array: Any, _index: int) -> float:
    """As `ends_of`, for one of many tasks that get the same array."""
    return float(array[0]) + float(array[-1])


def ends_of_slowly(array: Any) -> float:
    """As `ends_of`, so long that other workers get the next ones."""
    time.sleep(0.02)
    return ends_of(array)


_attached: dict[str, Any] = {}


def on_named(function: Any, name: str, shape: Any, dtype: Any) -> Any:
    """Returns `function` of an array in named shared memory, which the worker attaches once."""
    if name not in _attached:
        from multiprocessing.shared_memory import SharedMemory

        import numpy as np

        _attached.clear()
        memory = SharedMemory(name)
        _attached[name] = (np.ndarray(shape, dtype, buffer=memory.buf), memory)  # the array goes first
    return function(_attached[name][0])


_made: dict[int, Any] = {}


def same_array(items: int) -> Any:
    """Returns an array of `items` float64 that the worker made once: the cost is that of sending it."""
    array = _made.get(items)
    if array is None:
        import numpy as np

        array = _made[items] = np.arange(items, dtype=np.float64)
    return array


def announce(fifo: str, release: str) -> int:
    """Writes this process's id into `fifo`, then waits until the file `release` exists."""
    pid = os.getpid()
    with open(fifo, "wb", buffering=0) as pipe:
        pipe.write(b"%d\n" % pid)
    while not os.path.exists(release):
        time.sleep(0.001)
    return pid
