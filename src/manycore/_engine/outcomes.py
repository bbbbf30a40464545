"""What became of a map's items: one `Outcome` each, and the `Block` in which a chunk's come from their worker.

worker --records of a chunk--> Block (values still pickled, or of one failure) --`MapRun`--> Outcome --> consumer
                                                                      on_error="collect" --> Failure
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from manycore._engine.death import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FAILED", "Block", "Failure", "Outcome"]

FAILED: Final = -1  # a block's status when its `values` is the exception itself


class Outcome:
    """What became of one item.

    Attributes:
        index: Its place in the input, from 0.
        item: The item itself: for several iterables, the tuple of their items.
        result: What the function returned; None when it failed.
        error: Why it failed, or None.
        seconds: How long the function ran; for items that were too short to tell apart, their mean.
        worker: The index of the worker that ran it; -1 when it never ran.
    """

    __slots__ = ("error", "index", "item", "result", "seconds", "worker")

    def __init__(
        self, index: int, item: Any, result: Any, error: BaseException | None, seconds: float, worker: int
    ) -> None:
        self.index = index
        self.item = item
        self.result = result
        self.error = error
        self.seconds = seconds
        self.worker = worker

    def __repr__(self) -> str:
        what = f"result={self.result!r}" if self.error is None else f"error={self.error!r}"
        return f"Outcome(index={self.index!r}, item={self.item!r}, {what}, seconds={self.seconds!r})"

    def get(self) -> Any:
        """The result; raises the error where there is one."""
        __tracebackhide__ = True  # IPython, notebooks and pytest leave such frames out
        if self.error is not None:
            raise self.error
        return self.result

    def give(self) -> Any:
        """As `get`, from an iterator's step: there, what says that the iterator is at its end would be taken for that.

        Raises:
            RuntimeError: The error is a StopIteration or a StopAsyncIteration, and so the cause of this one.
        """
        __tracebackhide__ = True
        means_end = isinstance(self.error, StopIteration | StopAsyncIteration)
        if means_end:
            what = f"the call for item {self.index} ({shorten(self.item)})"
            raise RuntimeError(f"{what} raised {type(self.error).__name__}") from self.error
        return self.get()


class Failure:
    """Stands in the place of a failed item's result, with on_error="collect".

    Attributes:
        index: The item's place in the input, from 0.
        item: The item itself.
        error: Why it failed.
    """

    __slots__ = ("error", "index", "item")

    def __init__(self, index: int, item: Any, error: BaseException) -> None:
        self.index = index
        self.item = item
        self.error = error

    def __repr__(self) -> str:
        return f"Failure(index={self.index!r}, item={self.item!r}, error={self.error!r})"


class Block:
    """Outcomes of consecutive items of one chunk, as they came from one worker.

    Attributes:
        index: The first item's place in the input.
        values: The results, where `status` is None.
        items: The items; a part of the input itself where it is a range.
        status: None, or a record's status with `values` holding its pickle, or FAILED with the exception.
        seconds: The time of each.
        worker: Who ran them; -1 for nobody.
    """

    __slots__ = ("index", "items", "seconds", "status", "values", "worker")

    def __init__(
        self, index: int, values: list[Any], items: Sequence[Any], status: int | None, seconds: float, worker: int
    ) -> None:
        self.index = index
        self.values = values
        self.items = items
        self.status = status
        self.seconds = seconds
        self.worker = worker
