"""Maps: one function over many items, read lazily, sent in chunks that fit the work.

    input --read--> supply --encode, send--> tasks in flight --> blocks of outcomes --> consumer
         consumer's thread    whoever collects                whoever collects

Only the consumer's own thread runs the user's iterator, and only as far as the window reaches ahead of what has
been consumed: nothing is read that is not wanted, and a run that nobody consumes reads nothing more. What has
been read is sent on as results come, by whichever thread collects them.

Chunks. The first ones hold one item; from then on the measured time of an item decides, so that a chunk is some
milliseconds of work, grows at most eightfold from one to the next, and never holds more than its share of
what is left. Long items go one by one, which keeps the balance, timeouts and deaths exact. Where single results are
awaited, chunks are shorter, and their results are told of as they come: each wakes a thread of the parent, which
takes its time from the workers when they need all cores.

Invariants:
    sent + supply - yielded <= window          for a lazy run
    tasks in flight <= PER_WORKER * workers
    an index gets exactly one outcome
    a whole run that has failed holds no result
    a run is enlisted with its engine  <=>  it will send more: until then the engine does not end in order
    one thread at a time is inside `_step`
If a process dies: the dispatcher fails only the item that the worker was at; the rest of its chunk is sent again.
Source: guided self-scheduling (Polychronopoulos and Kuck), with the chunk's size taken from measured time.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from manycore import errors
from manycore._engine import frames
from manycore._engine.aftermath import condition_of, wake
from manycore._engine.amidst import Amidst
from manycore._engine.constants import Repeated, repeated_places
from manycore._engine.death import shorten
from manycore._engine.functions import name_of
from manycore._engine.future import outcome_of
from manycore._engine.outcomes import FAILED, Block, Outcome
from manycore._engine.settings import MapOptions
from manycore._launch.arguments import integer
from manycore._native.ring import SHIELD
from manycore._native.step import NESTED, Mutex, check_free, postpone
from manycore.errors import PoolClosed, ResultLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from manycore._engine.calls import Task
    from manycore._engine.local import Engine

__all__ = ["MapOptions", "MapRun"]

CHUNK_NS: Final = 16_000_000  # work in a chunk: hundreds of times what sending it costs, and short enough to balance
LAZY_CHUNK_NS: Final = 2_000_000  # the same for a lazy run, whose results are awaited one by one
CHUNK_BYTES: Final = 1 << 16  # bytes of pickled items in a chunk, so that few large items are ahead of the consumer
CHUNK_ITEMS: Final = 1 << 15  # items in a chunk, however short they are
LAZY_CHUNK_ITEMS: Final = 1 << 10  # the same for a lazy run, whose window is a few chunks
GROWTH: Final = 8  # a chunk to the next: a few slow items among fast ones are met early
PER_WORKER: Final = 3  # chunks in flight for each worker: one runs, two wait
WINDOW_CHUNKS: Final = 4  # a lazy run's chunks, for each worker, that are read ahead of the consumer
WINDOW_ITEMS: Final = 16  # and its items, for each worker, when chunks are short: one slow item must not stop the rest


# An input gives this in place of an item when it has none at the moment: results do not wait for its next one.
NOTHING_YET: Final = object()


class MapRun(Amidst):
    """One map call.

    Args:
        engine: What runs it.
        function: The user's function.
        items: The input; an iterator is read lazily, in the consumer's thread.
        options: How.

    Process-safety: belongs to its process. One thread consumes at a time.
    """

    def __init__(self, engine: Engine, function: Callable[..., Any], items: Iterable[Any], options: MapOptions) -> None:
        integer("chunksize", options.chunksize)
        if options.chunksize < 0:
            raise ValueError(f"chunksize must be at least 1, not {options.chunksize}")
        integer("buffersize", options.window)
        if options.window < 0:
            raise ValueError(f"buffersize must be at least 1, or 0 for what is useful, not {options.window}")
        super().__init__()
        self._engine = engine
        self._options = options
        self._lazy = options.lazy
        if not options.lazy and not isinstance(items, Sized):
            items = list(items)
        self._others: Callable[[Any], tuple[Any, ...]] | None = None  # what is sent of an item, where it is not all
        if options.star and type(items) is list:
            function = self._without_repeated(function, items)
        flags = frames.CHUNK | (frames.STAR if options.star else 0) | (frames.AWAITED if options.lazy else 0)
        self._function = engine.outbox.functions.get(function, flags)
        self._left = len(items) if isinstance(items, Sized) else None  # items not sent yet, where known
        self._source: Iterator[Any] | None = iter(items)  # None once it has ended
        self._range = items if type(items) is range else None  # whose parts are ranges: nothing is made of their items
        self._supply: deque[Any] = deque()  # read and not sent; lazy runs only
        self._policy = options.policy
        if options.policy is not None and options.policy.keeper is None:
            engine.bind(options.policy)
        alone = options.policy is not None and options.policy.retries > 0  # what is tried again travels alone
        self._chunk = 1 if alone else options.chunksize or 1
        self._measured = not options.chunksize and not alone
        self._taken = 0  # items taken to be sent: counted before it shows that they were the last
        self._sent = 0  # items handed to the engine, or failed before that
        self._yielded = 0  # items that the consumer has
        self._in_flight: dict[Task, tuple[int, Sequence[Any]]] = {}  # -> index of its first item, its items
        self._blocks: dict[int, Block] = {}  # by index; ordered runs
        self._arrived: deque[Block] = deque()  # unordered runs
        self._mutex = Mutex()
        self._condition = condition_of(self._mutex)  # notified when a block came
        self._item_ns = 0.0  # a moving mean of an item's time
        self._item_bytes = 0.0  # and of its pickled size
        self._reading_error: BaseException | None = None  # of the input: raised after what it gave before
        self._error: BaseException | None = None  # of the run itself
        self._failed: Block | None = None  # the first to come of a whole run
        self._stepping = False
        self._step_again = False
        self._abandoned = False
        self._unbounded = False  # the pool is being joined: nothing is gained by reading late
        self.reporter: Any = None  # counts what has come; see _observe/progress.py
        self.keeper: object = None  # the pool, which must not end before this run does
        self._rest: Iterator[Outcome] = iter(())
        self._listener: Callable[[], object] | None = None  # an event loop's: called when there are news
        self.of_main = SHIELD.main  # the thread that consumes it, as far as is known
        self.turn_began = 0.0  # when the loop's task that consumes had others run

    def _without_repeated(self, function: Any, items: list[Any]) -> Any:
        """Large arguments that are the same for all items are sent with the function; see constants.py."""
        places = repeated_places(items) if callable(function) else ()
        if not places:
            return function
        try:
            repeated = Repeated(function, name_of(function), places, [items[0][place] for place in places])
        except Exception:  # they are short, or cannot be pickled, which the items will say
            return function
        kept = [place for place in range(len(items[0])) if place not in places]
        self._others = lambda item: tuple(item[place] for place in kept)
        self._repeated = repeated  # whose file is to be there while tasks may begin
        self._engine.outbox.functions.sent_bytes += repeated.size
        return repeated

    @property
    def lazy(self) -> bool:
        """Whether the input is read only as results are consumed."""
        return self._lazy

    @property
    def total(self) -> int | None:
        """How many items there are, where the input says so before the run starts."""
        return self._left

    # The sink: under the engine's locks

    def take_plain(
        self, task: Task, item: int, values: list[Any], took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """Results that came as they are."""
        first, items = self._in_flight[task]
        mean = took_ns / len(values)
        self._measure(mean, len(values))
        if len(values) != len(items):
            items = items[item : item + len(values)]
        return self._put(task, Block(first + item, values, items, None, mean / 1e9, worker))

    def take(
        self, task: Task, item: int, status: int, data: Any, took_ns: int, worker: int
    ) -> Callable[[], object] | None:
        """One item's pickled result or failure."""
        first, items = self._in_flight[task]
        self._measure(took_ns, 1)
        return self._put(task, Block(first + item, [data], [items[item]], status, took_ns / 1e9, worker))

    def fail(self, task: Task, item: int, error: BaseException) -> Callable[[], object] | None:
        """The item has no result and will have none."""
        first, items = self._in_flight[task]
        return self._put(task, Block(first + item, [error], [items[item]], FAILED, 0.0, -1))

    def lost(self, _task: Task, error: BaseException) -> Callable[[], object] | None:
        """A thread was interrupted while it told of some items: the map ends with this error."""
        self._give_up(error)
        return None

    def _put(self, task: Task | None, block: Block) -> Callable[[], object] | None:
        with self._mutex:
            if self._options.whole and (self._failed is not None or block.status not in (None, frames.OK)):
                self._spoil(block)
            if self._options.ordered:
                self._blocks[block.index] = block
            else:
                self._arrived.append(block)
            if (reporter := self.reporter) is not None:
                reporter.count(len(block.items), block.status not in (None, frames.OK))
            if task is not None and task.received == task.count:
                del self._in_flight[task]
            wake(self._condition)
        if self._listener is not None:
            return self._tell
        return None if self._all_sent() else self.advance

    def _spoil(self, block: Block) -> None:
        """The run has failed, with this block or before; from now on blocks are only counted. Under the mutex."""
        if self._failed is None:
            self._failed = block
            for other in self._blocks.values():
                other.values = []
        else:
            block.values = []

    def _measure(self, item_ns: float, count: int) -> None:
        weight = min(1.0, max(0.25, count / self._chunk))
        self._item_ns += (item_ns - self._item_ns) * (1.0 if self._item_ns == 0 else weight)

    def split(self, task: Task) -> None:
        """Send the rest of a chunk item by item, because it cannot be unpickled as a whole. Without locks."""
        first, items = self._in_flight.pop(task)
        singles: list[Task] = []
        for place in range(task.received, task.count):
            single = self._encode(first + place, [items[place]])
            if single is not None:
                single.past = task.past if place == task.received else None  # what has begun before counts
                singles.append(single)
        self._engine.submit_again(singles)
        self.advance()

    def arguments(self, task: Task, item: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the item's call was given, for messages."""
        value = self._in_flight[task][1][item]
        return (tuple(value) if self._options.star else (value,)), {}

    # Sending

    def _encode(self, first: int, items: Sequence[Any]) -> Task | None:
        """A task for these items. One that cannot be pickled fails here and now; several raise."""
        try:
            task: Task = self._engine.outbox.encode(
                self._function,
                items if self._others is None else [self._others(item) for item in items],
                self,
                roots=(f"items[{first}]", "") if len(items) == 1 else (),  # which is in the message
                count=len(items),
                chunk=True,
                policy=self._policy,
            )
        except Exception as error:
            if len(items) > 1:
                raise
            self._put(None, Block(first, [error], items, FAILED, 0.0, -1))
            return None
        self._item_bytes += (task.nbytes / len(items) - self._item_bytes) * 0.5
        self._in_flight[task] = (first, items)
        return task

    def _send(self, items: Sequence[Any]) -> None:
        try:
            self._submit(self._encode(self._sent, items), len(items))
        except (PoolClosed, errors.PoolBroken):
            raise
        except Exception:
            for item in items:
                self._submit(self._encode(self._sent, [item]), 1)

    def _submit(self, task: Task | None, count: int) -> None:
        if task is not None:
            try:
                self._engine.submit(task, accepted=True)
            except BaseException:  # if a signal brought it, the task may have been queued
                with SHIELD:
                    self._engine.drop([task])
                    self._in_flight.pop(task, None)
                raise
        self._sent += count

    def _adapt(self) -> None:
        if not self._measured or not self._item_ns:
            return
        fitting = (LAZY_CHUNK_NS if self._lazy else CHUNK_NS) / self._item_ns
        if self._item_bytes:
            fitting = min(fitting, CHUNK_BYTES / self._item_bytes)
        size = min(int(fitting), self._chunk * GROWTH, LAZY_CHUNK_ITEMS if self._lazy else CHUNK_ITEMS)
        if self._left is not None:
            size = min(size, -(-self._left // (2 * self._engine.size)))
        self._chunk = max(1, size)

    def _all_sent(self) -> bool:
        return not self._supply and (self._source is None or self._abandoned)

    def _take(self) -> Sequence[Any]:
        """The next chunk's items, as far as they have been read."""
        size = self._chunk
        chunk: Sequence[Any]
        if self._lazy:
            supply = self._supply
            size = min(size, len(supply))
            self._taken += size
            chunk = [supply.popleft() for _ in range(size)]
        elif self._range is not None and self._source is not None and self._left is not None:
            first = len(self._range) - self._left
            chunk = self._range[first : first + size]
            self._taken += len(chunk)
            if len(chunk) == self._left:
                self._source = None
        else:
            chunk = list(itertools.islice(self._source or (), size))
            self._taken += len(chunk)
            if len(chunk) < size:
                self._source = None
        if self._left is not None:
            self._left -= len(chunk)
        return chunk

    def _step(self) -> None:
        """Send what may be sent now."""
        while len(self._in_flight) < PER_WORKER * self._engine.size and not self._abandoned:
            self._adapt()
            chunk = self._take()
            if not chunk:
                return
            self._send(chunk)

    def advance(self) -> None:
        """Go on sending. One thread does; another that comes meanwhile leaves it the work."""
        mine = False
        try:
            with self._mutex:
                if self._stepping:
                    self._step_again = True
                    return
                self._stepper = threading.get_ident()
                self._stepping = mine = True
            self._advance()
        except BaseException:  # an interrupt: items that it had in hand are not sent
            with SHIELD:
                if mine:
                    self._stepper = 0
                    self._stepping = False
                    self._give_up(ResultLost("this map was interrupted while it sent its items"))
                    self._engine.discharge(self)
            raise
        finally:
            if mine:
                self._leave()

    def _advance(self) -> None:
        while True:
            try:
                self._step()
            except Exception as error:
                self._give_up(error)
            if self._is_over():
                self._engine.discharge(self)
                if not self._in_flight:  # who waits for more may not know yet that the input has ended
                    with self._mutex:
                        wake(self._condition)
                    self._engine.alarm()
            with self._mutex:
                if not self._step_again:
                    self._stepper = 0
                    self._stepping = False
                    return
                self._step_again = False

    def _is_over(self) -> bool:
        """Whether nothing more will be sent."""
        return self._all_sent()

    def _give_up(self, error: BaseException) -> None:
        with self._mutex:
            if self._failed is None:
                self._error = error
            self._abandoned = True
            self._supply.clear()
            wake(self._condition)
        self._tell_listener()

    # Consuming

    def _read(self) -> None:
        """Read the input as far as the window reaches. In the consumer's thread, or in one that joins the pool."""
        if self._source is None or not self._lazy or not self._begin_reading():
            return
        try:
            self._read_on()
        finally:
            self._end_reading()

    def _read_on(self) -> None:
        window = self._options.window or self._engine.size * max(WINDOW_ITEMS, WINDOW_CHUNKS * self._chunk)
        source, supply = self._source, self._supply
        if source is None:
            return
        try:
            while not self._abandoned and (self._unbounded or self._sent + len(supply) - self._yielded < window):
                item = next(source)
                if item is NOTHING_YET:
                    return
                supply.append(item)
                if len(supply) >= self._chunk and len(self._in_flight) < PER_WORKER * self._engine.size:
                    self.advance()  # an input that is slow to read must not keep the workers waiting
        except StopIteration:
            self._source = None
        except Exception as error:
            self._reading_error = error
            self._source = None

    def start(self) -> None:
        """Send the first chunks."""
        self._engine.enlist(self)
        self._read()
        self.advance()

    def end_input(self, error: BaseException) -> None:
        """Read nothing more; `error` is raised after the outcomes of what has been read."""
        if self._source is not None:
            self._reading_error = error
            self._source = None
        self.advance()

    def read_all(self) -> None:
        """The pool is being joined: what its consumer would have read later is read now."""
        self._unbounded = True
        self._read()
        self.advance()

    def poll(self) -> bool:
        """Whether `next_outcome` would give or raise something at once. Reads and sends as it does."""
        self._read()
        if not self._all_sent():
            self.advance()
        return self._has_news()

    def _has_news(self) -> bool:
        return self._available() or self._is_given()

    def _is_given(self) -> bool:
        """Whether nothing more will come."""
        return self._all_sent() and (self._yielded == self._taken or self._abandoned)

    def tell(self, listener: Callable[[], object]) -> None:
        """Call it, from any thread, when `poll` may have become true; once at least."""
        self._listener = listener
        if self._available() or self._all_sent():
            self._tell_listener()

    def _tell_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener()

    def _tell(self) -> None:
        if not self._all_sent():
            self.advance()
        self._tell_listener()

    def next_of_block(self) -> Outcome | None:
        """The next outcome of those that are here and not given; None when there is none."""
        return next(self._rest, None)

    def _available(self) -> bool:
        if self._error is not None:
            return True
        return self._yielded in self._blocks if self._options.ordered else bool(self._arrived)

    def next_block(self, deadline: float | None = None) -> Block | None:
        """The next outcomes; None at the end.

        Raises:
            TimeoutError: There were none by the deadline (`time.monotonic`).
            PoolClosed, PoolBroken: The pool ended before the run did.
            Exception: What the input's own iterator raised, after the outcomes of what it gave before.
        """
        check_free()
        if self.busy():
            raise RuntimeError(NESTED)
        self._read()
        if not self._all_sent():
            self.advance()
        if not self._has_news() and not self._engine.wait(self._has_news, lambda: self._condition, deadline):
            if deadline is None:
                if self._failed is not None:
                    return None
                raise PoolClosed("the pool ended before this map was done")
            raise TimeoutError("no result yet")
        if not self._available():
            self._end_report()
            self.forget()
            error, self._reading_error = self._reading_error, None
            if error is not None:
                raise error
            return None
        with self._mutex:
            block = self._pop()
        if block is None:
            raise self._error or PoolClosed("this map was abandoned")
        self._count(block)
        return block

    def _count(self, block: Block) -> None:
        """The block is its consumer's."""
        self._yielded += len(block.items)
        if self.reporter is not None:
            self.reporter.tell()

    def _end_report(self) -> None:
        reporter, self.reporter = self.reporter, None
        if reporter is not None:
            reporter.close()

    def _pop(self) -> Block | None:
        if self._options.ordered:
            return self._blocks.pop(self._yielded, None)
        return self._arrived.popleft() if self._arrived else None

    def outcomes(self, block: Block) -> Iterator[Outcome]:
        """The outcomes of a block's items. Results are unpickled here, one by one."""
        if block.status is None:
            for place, value in enumerate(block.values):
                yield Outcome(block.index + place, block.items[place], value, None, block.seconds, block.worker)
            return
        result: Any = None
        error: BaseException | None
        if block.status == FAILED:
            error = block.values[0]
        else:
            item = block.items[0]
            given = item if self._options.star and type(item) is tuple else (item,)
            result, error = outcome_of(block.status, block.values[0], lambda: self._place(given, block.worker))
        yield Outcome(block.index, block.items[0], result, error, block.seconds, block.worker)

    def _place(self, given: tuple[Any, ...], worker: int) -> str:
        called = f"{self._function.name}({', '.join(shorten(value) for value in given)})"
        return f"{called} on worker {worker} of pool {self._engine.name!r}"

    @property
    def failed(self) -> bool:
        """Whether an item of a whole run has failed: blocks have no values any more."""
        return self._failed is not None

    def heed(self, outcome: Outcome) -> None:
        """Raise the error of an outcome, where there is one; that of a whole run is raised at its end."""
        __tracebackhide__ = True
        if not self._options.whole:
            outcome.give()
        elif outcome.error is not None:
            with self._mutex:
                self._spoil(Block(outcome.index, [outcome.error], [outcome.item], FAILED, 0.0, -1))

    def take_failure(self) -> BaseException | None:
        """The error of the first item of a whole run that failed."""
        block, self._failed = self._failed, None
        return None if block is None else next(self.outcomes(block)).error

    def next_outcome(self, deadline: float | None = None) -> Outcome | None:
        """The next outcome; None at the end. Raises as `next_block` does."""
        for outcome in self._rest:
            return outcome
        block = self.next_block(deadline)
        if block is None:
            return None
        self._rest = self.outcomes(block)
        return next(self._rest)

    def abandon(self, *, running: bool = False) -> None:
        """Read and send nothing more; take back what no worker has begun, and with `running` end what one has."""
        if postpone(partial(self.abandon, running=running)):
            return
        self._end_report()
        self.forget()
        for task in self._engine.drop(list(self._in_flight), running=running):
            del self._in_flight[task]

    def forget(self) -> None:
        """Read and send nothing more. Takes no lock, so that a finalizer may call it."""
        self._abandoned = True
        self._source = None
        self._supply.clear()
        self.keeper = None
        if self.reporter is not None:
            self.reporter.drop()
        self._engine.discharge(self)

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)  # none where its making was interrupted
        if engine is not None:
            engine.discharge(self)
