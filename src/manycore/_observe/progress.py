"""Progress of a map: how much is done, how fast, how long it will take, what failed, who is busy.

    whoever collects results                  the reporter's thread
    count() ........................ counts ==> snapshot() -> the display, a few times a second
                                                 bar       one line of a terminal, drawn with rich
                                                 notebook  a line of HTML
                                                 lines     one line a minute, for logs
    the thread that consumes them
    tell() -> the callable, at most ten times a second

An item counts when its result is here, though the consumer of an ordered map may have to wait for one before it.

Invariants:
    One thread at a time writes the counts; the reporter's thread reads them. Each is one int, so a
    reader sees an old or a new value and never half of one: there is no lock on the way of a result.
    What is on the screen is guarded by `_TerminalBar._screen`; no other lock is taken under it.
    A display that fails (its terminal has gone) is dropped: progress never fails the work.

Unlike tqdm and rich.progress: nothing is imported, started or drawn before half a second has passed, and the
    threads that count and tell never draw.
"""

from __future__ import annotations

import html
import os
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from rich.console import Console

__all__ = ["Progress", "Reporter", "start_progress"]

_QUIET_S = 0.5  # nothing is drawn before: a short map shall not flicker
_BAR_INTERVAL_S = 0.25  # a drawing costs 1-2 ms of a core that workers could use: under 1 %
_LINE_INTERVAL_S = 60.0  # lines go to logs, which are kept
_CALL_INTERVAL_S = 0.1  # what a person can follow
_RATE_WINDOW_S = 30.0  # the rate is that of the last half minute, so that it follows the work
_SAMPLE_INTERVAL_S = 0.25  # so the window holds at most 120 samples
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of a running map at one moment.

    Attributes:
        done: Items that are finished, failed ones included.
        failed: Items that failed.
        total: How many there are; None while nobody knows.
        elapsed: Seconds since the start.
        rate: Items a second, over the last half minute.
        remaining: Seconds that the rest will take at this rate; None while that cannot be said.
        workers: Workers of the pool.
        busy: Workers that run a task.
        finished: True in the last snapshot, of a map that has ended.
    """

    done: int
    failed: int
    total: int | None
    elapsed: float
    rate: float
    remaining: float | None
    workers: int
    busy: int
    finished: bool = False


class _Display(Protocol):
    interval_s: float
    first_s: float

    def show(self, progress: Progress) -> None: ...

    def close(self, progress: Progress) -> None: ...


class Reporter:
    """Counts finished items and shows them; a context manager.

    Args:
        display: Where to show, or None for a callable alone.
        total: How many items there are: a number, a function that estimates it anew, or None.
        status: Gives `(workers, busy)`; called from the reporter's thread.
        callback: Called in the consuming thread with a `Progress`.
    """

    def __init__(
        self,
        display: _Display | None,
        *,
        total: int | Callable[[], int | None] | None = None,
        status: Callable[[], tuple[int, int]] | None = None,
        callback: Callable[[Progress], object] | None = None,
    ) -> None:
        self._display = display
        self._total = total
        self._status = status
        self._callback = callback
        self._done = 0  # written by `count` alone
        self._failed = 0  # written by `count` alone
        self._started = time.monotonic()
        self._next_call = self._started + _CALL_INTERVAL_S
        self._samples: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        if display is not None:
            self._thread = threading.Thread(target=self._run, name="manycore-progress", daemon=True)
            self._thread.start()

    def advance(self, count: int = 1, failed: int = 0) -> None:
        """`count` and `tell`."""
        self.count(count, failed)
        self.tell()

    def count(self, count: int, failed: int) -> None:
        """Count `count` more items as done, `failed` of which failed. Calls nobody; by one thread at a time."""
        self._done += count
        self._failed += failed

    def tell(self) -> None:
        """Call the callable, if it is time; in the consumer's thread."""
        if self._callback is not None:
            now = time.monotonic()
            if now >= self._next_call:
                self._next_call = now + _CALL_INTERVAL_S
                self._callback(self.snapshot())

    def snapshot(self, *, finished: bool = False) -> Progress:
        """Say how things stand."""
        now = time.monotonic()
        done = self._done
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now - _RATE_WINDOW_S:
            samples.popleft()
        since, before = samples[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        if now - samples[-1][0] >= _SAMPLE_INTERVAL_S:
            samples.append((now, done))
        total = self._total() if callable(self._total) else self._total
        if total is not None:
            total = max(total, done)
        remaining = (total - done) / rate if total is not None and rate > 0 else None
        workers, busy = self._status() if self._status is not None else (0, 0)
        return Progress(
            done, self._failed, total, now - self._started, rate, remaining, workers, min(busy, workers), finished
        )

    @contextmanager
    def above(self) -> Iterator[None]:
        """Make room while the caller writes to the terminal that shows the bar; the bar comes back below."""
        if isinstance(self._display, _TerminalBar):
            with self._display.erased():
                yield
        else:
            yield

    def drop(self) -> None:
        """Let the display end by itself; for a finalizer, so nobody is waited for or called."""
        self._closed = True
        self._stop.set()

    def close(self) -> None:
        """Show the end, and end the reporter's thread. Closing twice is nothing."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._callback is not None:
            self._callback(self.snapshot(finished=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        display = self._display
        if display is None:
            return
        try:
            if not self._stop.wait(display.first_s):
                display.show(self.snapshot())
                while not self._stop.wait(display.interval_s):
                    display.show(self.snapshot())
            display.close(self.snapshot(finished=True))
        except (OSError, ValueError):  # the terminal has gone, or its file was closed
            return


def start_progress(
    progress: bool | str | Callable[[Progress], object] | None,
    *,
    total: int | Callable[[], int | None] | None = None,
    status: Callable[[], tuple[int, int]] | None = None,
    transient: bool = False,
) -> Reporter | None:
    """Start reporting as `progress` asks; None where it asks for nothing.

    Args:
        progress: None or False for nothing; True for what fits standard error (a bar on a terminal or in a
            notebook, else a line a minute); a string for the same with that name in front; a callable that is
            called with a `Progress` at most ten times a second, and once at the end.
        total: How many items there are: a number, a function that estimates it anew, or None.
        status: Gives `(workers, busy)`.
        transient: Whether the bar vanishes at the end.

    Raises:
        TypeError: `progress` is none of these.
    """
    if progress is None or progress is False:
        return None
    if callable(progress):
        return Reporter(None, total=total, status=status, callback=progress)
    if not isinstance(progress, (bool, str)):
        raise TypeError(f"progress must be True, a name or a callable, not {progress!r}")
    label = progress if isinstance(progress, str) else ""
    display: _Display
    if _in_notebook():
        display = _NotebookBar(label)
    elif sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        display = _TerminalBar(label, transient=transient)
    else:
        display = _Lines(label)
    return Reporter(display, total=total, status=status)


def _in_notebook() -> bool:
    """Whether output goes to a notebook; IPython is not imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return any(one.__name__ == "ZMQInteractiveShell" for one in type(shell).__mro__)  # hosted ones have their own


def format_duration(seconds: float) -> str:
    """Seconds for a reader: `48s`, `12m 30s`, `3h 05m`, `2d 4h`."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m {whole % _MINUTE_S:02}s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S}h {whole % _HOUR_S // _MINUTE_S:02}m"
    return f"{whole // _DAY_S}d {whole % _DAY_S // _HOUR_S}h"


def format_rate(rate: float) -> str:
    """Items a second for a reader; a minute or an hour where they are slow."""
    if rate >= 1 or rate <= 0:
        return f"{rate:,.0f}/s" if rate >= 10 or rate <= 0 else f"{rate:.1f}/s"
    if rate * _MINUTE_S >= 1:
        return f"{rate * _MINUTE_S:.1f}/min"
    return f"{rate * _HOUR_S:.1f}/h"


def _facts(progress: Progress) -> list[str]:
    """The figures beside the bar, the most important first."""
    facts = [f"{progress.done:,}" if progress.total is None else f"{progress.done:,}/{progress.total:,}"]
    if progress.failed:
        facts.append(f"{progress.failed:,} failed")
    if progress.finished:
        facts.append(f"in {format_duration(progress.elapsed)}")
    elif progress.remaining is not None:
        facts.append(f"{format_duration(progress.remaining)} left")
    else:
        facts.append(format_duration(progress.elapsed))
    facts.append(format_rate(progress.rate if not progress.finished else progress.done / max(progress.elapsed, 1e-9)))
    if progress.workers and not progress.finished:
        facts.append(f"{progress.busy} of {progress.workers} busy")
    return facts


class _TerminalBar:
    """One line of the terminal behind standard error, drawn again in place."""

    interval_s = _BAR_INTERVAL_S
    first_s = _QUIET_S

    def __init__(self, label: str, *, transient: bool) -> None:
        self._label = label
        self._transient = transient
        self._screen = threading.Lock()  # guards what is on the line; nothing else is taken under it
        self._file = sys.stderr
        self._console: Console | None = None
        self._drawn = False  # Invariant: True only while our text stands on the cursor's line

    def show(self, progress: Progress) -> None:
        text = self._render(progress)
        with self._screen:
            self._file.write(f"\r\x1b[2K{text}")
            self._file.flush()
            self._drawn = True

    def close(self, progress: Progress) -> None:
        with self.erased():
            if self._console is not None and not self._transient:
                self._file.write(f"{self._render(progress)}\n")
                self._file.flush()

    @contextmanager
    def erased(self) -> Iterator[None]:
        with self._screen:
            if self._drawn:
                self._file.write("\r\x1b[2K")
                self._file.flush()
                self._drawn = False
            yield

    def _render(self, progress: Progress) -> str:
        from rich.console import Console
        from rich.progress_bar import ProgressBar

        if self._console is None:
            self._console = Console(file=self._file, highlight=False)
        console = self._console
        room = console.width - 1  # a full line would wrap on some terminals
        text = ""
        for fact in [self._label, *_facts(progress)] if self._label else _facts(progress):
            longer = f"{text}  {fact}" if text else fact
            if len(longer) > room:
                break
            text = longer
        bar_width = min(40, room - len(text) - 2)
        if bar_width < 8:
            return text
        bar = ProgressBar(
            total=progress.total,
            completed=progress.done,
            width=bar_width,
            pulse=progress.total is None and not progress.finished,
        )
        with console.capture() as capture:
            console.print(bar, end="")
        return f"{capture.get()}  {text}"


class _NotebookBar:
    """A bar in a notebook's output, updated in place; rich's own would need ipywidgets, and this needs a browser."""

    interval_s = _BAR_INTERVAL_S
    first_s = _QUIET_S

    def __init__(self, label: str) -> None:
        self._label = label
        self._handle: Any = None

    def show(self, progress: Progress) -> None:
        display = import_module("IPython.display").display
        text = "  ".join([self._label, *_facts(progress)] if self._label else _facts(progress))
        known = "" if progress.total is None else f' value="{progress.done}" max="{progress.total}"'
        page = f'<progress{known} style="width: 20em"></progress> {html.escape(text)}'
        data = {"text/plain": text, "text/html": page}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def close(self, progress: Progress) -> None:
        if self._handle is not None:
            self.show(progress)


class _Lines:
    """One line a minute on a standard error that is no terminal."""

    interval_s = _LINE_INTERVAL_S
    first_s = _LINE_INTERVAL_S

    def __init__(self, label: str) -> None:
        self._label = label or "manycore"
        self._file = sys.stderr

    def show(self, progress: Progress) -> None:
        if self._file is not None:
            self._file.write(f"{self._label}: {', '.join(_facts(progress))}\n")
            self._file.flush()

    def close(self, progress: Progress) -> None:
        """Say nothing: who wrote the map says how it ended."""
