"""A map that nobody consumes while it runs: `map_async` and `starmap_async`. Whoever collects results takes its blocks.

If a process dies: as with any map, see mapping.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from manycore._engine.mapping import MapRun
from manycore._engine.results import add_results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from manycore._engine.calls import Task
    from manycore._engine.local import Engine
    from manycore._engine.mapping import MapOptions
    from manycore._engine.outcomes import Block
    from manycore._engine.results import OnError

__all__ = ["BackgroundRun"]


class BackgroundRun(MapRun):
    """A map call that nobody consumes while it runs.

    Args:
        finish: Called once, without locks, when all items are over: with the list of the results, or the first error.
        on_error: What a failed item does, as for `Pool.map`.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[..., Any],
        items: Iterable[Any],
        options: MapOptions,
        finish: Callable[[list[Any], BaseException | None], object],
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(engine, function, items, options)
        self.of_main = False  # nobody asks again if the main thread is interrupted while it goes on with it
        self._finish = finish
        self._on_error = on_error
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
            add_results(self, block, self._results, self._on_error)

    def _is_over(self) -> bool:
        return self._over

    def lost(self, _task: Task, error: BaseException) -> Callable[[], object] | None:
        """As for any map; callbacks are called without locks."""
        return partial(self._give_up, error)

    def _give_up(self, error: BaseException) -> None:
        super()._give_up(error)
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._end_report()
            self._finish(self._results, self.take_failure() or error)
            self.abandon()
