"""joblib's `Parallel` over manycore's workers, and so `n_jobs=` of scikit-learn.

    manycore.integrations.joblib.register()
    with joblib.parallel_config(backend="manycore"):
        joblib.Parallel()(joblib.delayed(f)(x) for x in xs)

joblib cuts the calls into batches and decides when one is handed over; here a batch becomes a call of an executor that
all `Parallel`s of this process with as many jobs share, so that the second one finds its workers there.

Of the arguments of a call, arrays of more than `max_nbytes` (joblib's default is 1 MB) are shared: all workers get
read-only views of one copy, as with joblib's memory maps, but without files. The copy goes with the array, and at the
end of the `Parallel` call. An array over a mapped file goes as its place in that file, and is written through.

Invariants:
    a batch's copies live until it is over: `_running` has them
If a process dies: a worker: its batch fails with `WorkerDied`, which ends the `Parallel` call; the next call has a full
    set of workers.
Unlike loky: when a call fails, what still runs for it is ended, and not the workers of other calls.
"""

from __future__ import annotations

import os
import sys
import weakref
from math import inf
from typing import TYPE_CHECKING, Any, Final

from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from manycore._engine.here import cores
from manycore.futures import ProcessPoolExecutor
from manycore.shared_memory import share

if TYPE_CHECKING:
    from collections.abc import Callable

    from manycore.futures import Future

__all__ = ["ManycoreBackend", "register"]

# How long workers without work wait for the next `Parallel`: as long as loky's.
IDLE_SECONDS: Final = 300

_executors: dict[tuple[int, int, int | None], ProcessPoolExecutor] = {}  # by process, jobs, threads in each


def register(*, make_default: bool = False) -> None:
    """Make `backend="manycore"` known to joblib.

    Args:
        make_default: Use it wherever no backend is named, too.
    """
    register_parallel_backend("manycore", ManycoreBackend, make_default=make_default)


class ManycoreBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib ships no types
    """What joblib makes for `backend="manycore"`; it takes joblib's own options.

    Without `n_jobs`, all cores work. `Parallel` in a call runs in threads, or in turn, as under loky; under
    `parallel_config(backend="manycore")` of its own it has its worker's share of the cores.

    **If a process dies:** a worker's death ends the `Parallel` call with `WorkerDied`; the next call works.
    """

    default_n_jobs = -1
    supports_inner_max_num_threads = True
    supports_retrieve_callback = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._executor: ProcessPoolExecutor
        self._shared_bytes = inf  # arrays of more are shared
        self._shared: dict[int, tuple[weakref.ref[Any], Any]] = {}  # by id: an array, and its copy
        self._running: dict[Future[Any], Any] = {}  # batches, with what they hold

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers `n_jobs` means: all cores for -1, all but one for -2, ..."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(1, cores() + 1 + n_jobs)

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **options: Any) -> int:
        """A call of `Parallel` begins."""
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        least = options.get("max_nbytes")
        self._shared_bytes = inf if least is None or options.get("mmap_mode") != "r" else least
        self._executor = _executor(workers, self.inner_max_num_threads)
        return workers

    def submit(self, func: Any, callback: Callable[[Any], object] | None = None) -> Future[Any]:
        """Hand a batch over."""
        if "numpy" in sys.modules:
            place = self._place
            func.items = [
                (call, tuple(map(place, args)), {name: place(value) for name, value in kwargs.items()})
                for call, args, kwargs in func.items
            ]
        future = self._executor.submit(_run, func)
        self._running[future] = func
        future.add_done_callback(self._running.pop)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The batch's results."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: ARG002  # joblib's signature
        """A call has failed, or nobody wants the rest: end what runs."""
        for future in tuple(self._running):
            future.cancel(running=True)

    def terminate(self) -> None:
        """A call of `Parallel` is over; the workers stay for the next one."""
        self._shared.clear()
        self.reset_batch_stats()

    def _place(self, value: Any) -> Any:
        """What is sent in place of an argument."""
        if not isinstance(value, sys.modules["numpy"].ndarray):
            return value
        if (place := _Mapped.of(value)) is not None:
            return place
        if value.nbytes <= self._shared_bytes or value.dtype.hasobject:
            return value
        identity, table = id(value), self._shared
        reference, handle = table.get(identity) or (None, None)
        if reference is None or reference() is not value:
            try:
                handle = share(value)
            except OSError:  # memory is short: it goes the usual way
                return value
            table[identity] = weakref.ref(value, lambda _: table.pop(identity, None) and None), handle
        return handle


class _Mapped:
    """An array over a mapped file, on its way: it arrives as an array over the same part of that file."""

    def __init__(self, root: Any, array: Any, start: int, size: int) -> None:
        mode = "r+" if root.mode == "w+" else root.mode
        self._file = (os.path.abspath(root.filename), mode, root.offset + start, size)
        self._layout = (array.shape, array.dtype, array.strides, array.flags.writeable)

    def __reduce__(self) -> tuple[Any, ...]:
        return _map, (*self._file, *self._layout)

    @classmethod
    def of(cls, array: Any) -> _Mapped | None:
        """None for an array that is over no file, or runs backwards in it."""
        numpy = sys.modules["numpy"]
        root = array
        while isinstance(root.base, numpy.ndarray):
            root = root.base
        if not isinstance(root, numpy.memmap) or root.filename is None or min(array.strides, default=0) < 0:
            return None
        start = array.ctypes.data - root.ctypes.data
        reach = sum((count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True))
        return cls(root, array, start, reach + array.itemsize)


def _map(path: str, mode: Any, offset: int, size: int, shape: Any, dtype: Any, strides: Any, writeable: bool) -> Any:
    import numpy as np

    array = np.ndarray(shape, dtype, np.memmap(path, np.uint8, mode, offset, (size,)), 0, strides)
    array.flags.writeable = writeable
    return array


def _executor(workers: int, threads: int | None) -> ProcessPoolExecutor:
    """The one for this many workers; a new one where there is none, or it takes no more calls."""
    key = os.getpid(), workers, threads
    executor = _executors.get(key)
    try:
        if executor is not None:
            executor._engine.check_open()
            return executor
    except RuntimeError:
        pass
    made = ProcessPoolExecutor(workers, name="joblib", idle_timeout=IDLE_SECONDS, blas_threads=threads)
    _executors[key] = made
    return made


def _run(batch: Callable[[], list[Any]]) -> list[Any]:
    register()  # for a `Parallel` in a call
    return batch()
