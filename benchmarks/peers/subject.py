"""manycore itself: its two pool faces, and its processes and primitives."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter
from benchmarks.peers.standard import ExecutorLike, PoolLike
from benchmarks.spec import Family, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Namespace:
    """The library's namespace, in which a missing name means that it is not offered (yet)."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError as error:
            raise Unsupported(str(error)) from error


def _shared(
    adapter: PoolAdapter, function: Callable[[Any, Any], Any], value: Any
) -> Callable[[Sequence[Any]], list[Any]]:
    bound = partial(function, Namespace(_load()).share(value))
    return lambda items: adapter.map(bound, items)


def _load() -> Any:
    import manycore

    return manycore


class _Pool(PoolLike):
    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        return _shared(self, function, value)

    def call_shared(self, function: Callable[[Any], Any], array: Any) -> Callable[[], Any]:
        return partial(self.call, function, Namespace(_load()).share(array))


class _Executor(ExecutorLike):
    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        return _shared(self, function, value)

    def call_shared(self, function: Callable[[Any], Any], array: Any) -> Callable[[], Any]:
        return partial(self.call, function, Namespace(_load()).share(array))


class Subject(Peer):
    module = "manycore"
    distribution = "manycore"
    role = "subject"


class PoolFace(Subject):
    name = "manycore.Pool"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(Namespace(self.load()).Pool(workers, **options), workers)


class ExecutorFace(Subject):
    name = "manycore.ProcessPoolExecutor"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Executor(Namespace(self.load()).ProcessPoolExecutor(workers, **options), workers)


class Primitives(Subject):
    name = "manycore"
    families: frozenset[Family] = frozenset({"process", "primitive"})

    def context(self) -> Any:
        return Namespace(self.load())


PEERS: tuple[Peer, ...] = (PoolFace(), ExecutorFace(), Primitives())
