"""A map that nobody consumes while it runs: `map_async` and `starmap_async`. Whoever collects results takes its blocks.

If a process dies: as with any map, see mapping.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manycore._engine.mapping import MapRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from manycore._engine.calls import Task
    from manycore._engine.local import Engine
    from manycore._engine.mapping import MapOptions
    from manycore._engine.outcomes import Block

__all__ = ["BackgroundRun"]


class BackgroundRun(MapRun):
    """A map call that nobody consumes while it runs.

    Args:
        finish: Called once, without locks: with the list of the results, or with the first error in the input's order.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[..., Any],
        items: Iterable[Any],
        options: MapOptions,
        finish: Callable[[list[Any], BaseException | None], object],
    ) -> None:
        super().__init__(engine, function, items, options)
        self.of_main = False  # nobody asks again if the main thread is interrupted while it goes on with it
        self._finish = finish
        self._results: list[Any] = []
        self._over = False

    def _put(self, task: Task | None, block: Block) -> Callable[[], object] | None:
        super()._put(task, block)
        return self.advance

    def _step(self) -> None:
        super()._step()
        while not self._over:
            with self._mutex:
                block = self._pop()
            if block is None:
                if self._all_sent() and self._yielded == self._sent:
                    self._end(None)
                return
            self._count(block)
            if block.status is None:
                self._results += block.values
                continue
            for outcome in self.outcomes(block):
                if outcome.error is not None:
                    self._end(outcome.error)
                    return
                self._results.append(outcome.result)

    def _is_over(self) -> bool:
        return self._over

    def _give_up(self, error: BaseException) -> None:
        super()._give_up(error)
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._end_report()
            self._finish(self._results, error)
            self.abandon()
