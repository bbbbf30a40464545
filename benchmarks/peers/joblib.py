"""joblib: batches of calls. It has no single submit; a list of calls goes through one Parallel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import Peer, PoolAdapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class _Pool(PoolAdapter):
    def __init__(self, module: Any, workers: int) -> None:
        super().__init__(workers)
        self._module = module
        self._delayed = module.delayed
        self._parallel = module.Parallel(n_jobs=workers)
        self._parallel.__enter__()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._parallel([self._delayed(function)(*args)])[0]

    def call_all(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._parallel(delayed(*args) for args in arguments))

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        delayed = self._delayed(function)
        return list(self._parallel(delayed(item) for item in items))

    def unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        delayed = self._delayed(function)
        parallel = self._module.Parallel(n_jobs=self.workers, return_as="generator_unordered")
        results: Iterator[Any] = parallel(delayed(item) for item in items)
        return results

    def map_shared(self, function: Callable[[Any, Any], Any], value: Any) -> Callable[[Sequence[Any]], list[Any]]:
        delayed = self._delayed(function)
        return lambda items: list(self._parallel(delayed(value, item) for item in items))

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


class Joblib(Peer):
    name = "joblib"
    module = "joblib"
    distribution = "joblib"

    def pool(self, workers: int, **options: Any) -> PoolAdapter:
        return _Pool(self.load(), workers, **options)


PEERS: tuple[Peer, ...] = (Joblib(),)
