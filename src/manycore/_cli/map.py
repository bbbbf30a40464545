"""`manycore map`: run a function over files, lines or records, on all cores.

    inputs.py -> pool.outcomes(Task) -> InOrder -> Output
                   |                      lines of JSON
                   `-> failures, progress, summary on standard error

Workers encode their results (task.py); this process reads, moves bytes and counts. Outcomes are taken in the
order in which they come, whatever the order of the lines, so that all that was finished is at hand when a run
ends early.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from typing import TYPE_CHECKING, cast

import click

import manycore
from manycore._cli.ending import Ended, Ending
from manycore._cli.exits import FAILED, PIPE_CLOSED, CommandError
from manycore._cli.inputs import Inputs, Kind, standard_input_is_terminal
from manycore._cli.output import InOrder, Output
from manycore._cli.summary import Failure, Tally, failure_of, shorten
from manycore._cli.target import import_or_explain, resolve
from manycore._cli.task import HEAD, BadItem, Done, Target, Task, encode, parse, settle
from manycore._engine.mapping import MapOptions
from manycore._engine.policy import make_policy
from manycore._launch.machine import cpu_count
from manycore._observe.progress import Reporter, start_progress
from manycore.errors import PoolBroken

if TYPE_CHECKING:
    from manycore._engine.local import Stats
    from manycore._engine.mapping import MapRun
    from manycore._engine.outcomes import Block

__all__ = ["command"]

_FAILURES_TOLD = 10  # on standard error, one line each; the rest is counted
_LOOK_INTERVAL_S = 0.1  # for a signal; of the two seconds that Ctrl-C may take
_LAST_RESULTS_S = 0.2  # for what workers have in hand, of these two seconds
_LAST_WORDS_S = 0.8  # for a reader to take what was finished, of these two seconds


@click.command("map", short_help="Run a function over files, lines or records, on all cores.")
@click.argument("function", metavar="FUNCTION")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--items",
    "kind",
    type=click.Choice(["files", "lines", "jsonl", "csv"]),
    help="What one item is. Default: files where INPUTs name several or a folder, else lines.",
)
@click.option("-o", "--output", metavar="FILE", help="Write here; the file gets its name when it is complete.")
@click.option("--unordered", is_flag=True, help="Write results as they come, not in the order of the items.")
@click.option("-j", "--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes. Default: the cores.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The longest that one item may take.",
)
@click.option(
    "--retries", type=click.IntRange(min=0), default=0, metavar="N", help="Try a failed item again, N times at most."
)
@click.option(
    "--on-error",
    type=click.Choice(["collect", "skip", "stop"]),
    default="collect",
    show_default=True,
    help="collect: write failed items with their error. skip: leave them out. stop: end at the first one.",
)
@click.option(
    "--progress/--no-progress", default=None, help="Show progress on standard error; automatic on a terminal."
)
@click.option("--preload", multiple=True, metavar="MODULE", help="Import once, before workers start. Repeatable.")
def command(
    *,
    function: str,
    inputs: tuple[str, ...],
    kind: str | None,
    output: str | None,
    unordered: bool,
    workers: int | None,
    timeout: float | None,
    retries: int,
    on_error: str,
    progress: bool | None,
    preload: tuple[str, ...],
) -> None:
    """Run FUNCTION on every item of the INPUTs, on all cores.

    FUNCTION is package.module:name or path/to/file.py:name; it is called with one item. INPUTs are files,
    folders, globs, or '-' for standard input. Each result becomes one line of JSON, in the order of the items:

    \b
      {"index": 0, "item": "a.txt", "result": 42}
      {"index": 1, "item": "b.txt", "error": {"type": "ValueError", "message": "..."}}

    What the function prints goes to standard error, so that it does not get among the results.

    Exit status: 0 all items succeeded; 1 some failed, or the output could not be written; 2 bad usage;
    130 after Ctrl-C. What was finished is then kept: with -o in FILE.partial.

    \b
    Examples:
      manycore map thumbs.py:make photos/ -o thumbs.jsonl
      manycore map 'json:loads' lines.txt | jq .result
      zcat log.gz | manycore map parse.py:line - --on-error skip > parsed.jsonl
    """  # noqa: D301  (click's mark for text that keeps its lines)
    if not inputs and standard_input_is_terminal():
        raise CommandError("name at least one INPUT, or '-' for standard input")
    ending = Ending()
    excluded = [output, f"{os.path.realpath(output)}.partial"] if output is not None else []
    items = Inputs(inputs, cast("Kind | None", kind), ending, excluded)
    results = Output(output, ending)
    try:
        # The modules are the user's: what they print as they are imported must not get among the results either.
        target = resolve(function)
        for module in preload:
            import_or_explain(module)
    except BaseException:
        results.keep(0.0)
        raise
    count = workers or cpu_count()
    total = items.total()
    if total is not None:
        count = max(1, min(count, total))
    run = _Run(target, items, results, ending, count)
    run.on_error = on_error
    run.ordered = not unordered
    run.timeout = timeout
    run.retries = retries
    run.preload = preload
    shown = sys.stderr.isatty() and not results.is_terminal if progress is None else progress
    raise click.exceptions.Exit(run.execute(show_progress=shown))


class _Run:
    """One run of `manycore map`, from the first item to the last line.

    Args:
        target: The function.
        items: What to run it on.
        output: Where results go.
        ending: What asks it to end early.
        workers: How many workers there are.
    """

    def __init__(self, target: Target, items: Inputs, output: Output, ending: Ending, workers: int) -> None:
        self.on_error = "collect"
        self.ordered = True
        self.timeout: float | None = None
        self.retries = 0
        self.preload: tuple[str, ...] = ()
        self._task = Task(target, is_json=items.kind == "jsonl")
        self._items = items
        self._output = output
        self._ending = ending
        self._order = InOrder(output.write)
        self._tally = Tally(workers)
        self._reporter: Reporter | None = None
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # of a new outcome; open as long as this process
        self._told = 0  # failures, on standard error
        self._stats: Stats | None = None

    def execute(self, *, show_progress: bool) -> int:
        """Do it all; return the exit status."""
        self._ending.watch()
        try:
            try:
                stopped_by = self._collect(show_progress=show_progress)
            finally:
                self._close_reporter()
            if stopped_by:
                raise CommandError(f"{stopped_by}; stopped, {self._keep()}", FAILED)
            self._output.finish()
        except Ended as ended:
            _say(f"manycore: {ended.word}; {self._keep()}")
            return ended.status
        except BrokenPipeError:
            self._output.keep(0.0)
            return PIPE_CLOSED
        except CommandError:
            raise
        except Exception as error:
            if self._output.error is not None:
                raise self._output.describe(self._output.error) from None
            reason = str(error).partition("\n")[0]
            raise CommandError(f"{type(error).__name__}: {reason}; {self._keep()}", FAILED) from None
        for line in self._tally.lines(self._stats) if self._stats is not None else ():
            _say(line)
        return FAILED if self._tally.failed else 0

    def _collect(self, *, show_progress: bool) -> str:
        """Run the items; return the failure that ended it all, or nothing."""
        with manycore.Pool(
            self._tally.workers,
            settle,
            name="map",
            preload=(Task.__module__, *self.preload),
        ) as pool:
            self._reporter = start_progress(
                show_progress, total=self._items.total, status=pool._engine.load, transient=True
            )
            if self._reporter is not None:
                self._output.share_terminal(self._reporter.above)
            policy = make_policy(timeout=self.timeout, retries=self.retries)
            options = MapOptions(ordered=False, lazy=True, policy=policy)
            outcomes = pool._run(self._task, self._items, options)
            try:
                outcomes.start()
                stopped_by = self._take_all(outcomes)
            except Ended:
                self._take_what_is_there(outcomes)
                raise
            if stopped_by:
                self._take_what_is_there(outcomes)
                return stopped_by
            self._stats = pool.stats()
        if self._told > _FAILURES_TOLD:
            self._close_reporter()
            _say(f"failed: {self._told - _FAILURES_TOLD:,} more")
        return ""

    def _take_all(self, outcomes: MapRun) -> str:
        """Take outcomes to the end; or to the first failure, if that ends it all, and return it."""
        while True:
            self._ending.check()
            if self._items.awaited is not None and not outcomes.poll() and self._items.awaited is not None:
                self._wait(outcomes, self._items.awaited)
                continue
            try:
                block = outcomes.next_block(time.monotonic() + _LOOK_INTERVAL_S)
            except TimeoutError:
                continue
            if block is None:
                return ""
            failures = self._take(outcomes, block)
            if failures and self.on_error == "stop":
                return failures[0]
            for failure in failures:
                self._tell(failure)

    def _wait(self, outcomes: MapRun, source: int) -> None:
        """Wait for the next outcome, or for more of the input."""
        poller = select.poll()
        poller.register(source, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        outcomes.tell(self._ring)
        self._ending.wait(poller)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _take_what_is_there(self, outcomes: MapRun) -> None:
        """Take what workers have finished, or finish in a moment; nothing more is read or sent."""
        outcomes.forget()
        deadline = time.monotonic() + _LAST_RESULTS_S
        try:
            while (block := outcomes.next_block(deadline)) is not None:
                self._take(outcomes, block)
        except (Exception, Ended):
            return  # no more: the time is over, or the output cannot take it

    def _take(self, outcomes: MapRun, block: Block) -> list[str]:
        """Count the outcomes of a block, write their lines, and return what failed, for standard error.

        Outcomes of short tasks come by the thousand, as packed bytes: they are taken together.
        """
        lines: list[bytes] = []
        failures: list[str] = []
        if block.status is None:
            cpu_seconds = 0.0
            for index, value in enumerate(block.values, block.index):
                seconds, has_text = HEAD.unpack_from(value)
                cpu_seconds += seconds
                if has_text:
                    lines.append(b'{"index": %d, ' % index)
                    lines.append(value[HEAD.size :])
                else:
                    done = Done.unpack(value)
                    item = block.items[index - block.index]
                    lines.append(self._fail(index, item, Failure(done.kind, done.reason), failures))
            self._tally.cpu_seconds += cpu_seconds
        else:
            for outcome in outcomes.outcomes(block):
                if isinstance(outcome.error, PoolBroken):
                    raise outcome.error
                if outcome.error is None:
                    done = Done.unpack(outcome.result)
                    self._tally.cpu_seconds += done.cpu_seconds
                    if done.text is not None:
                        lines += (b'{"index": %d, ' % outcome.index, done.text)
                        continue
                    failure = Failure(done.kind, done.reason)
                else:
                    failure = failure_of(outcome.error)
                lines.append(self._fail(outcome.index, outcome.item, failure, failures))
        count = len(block.items)
        self._tally.done += count
        self._tally.failed += len(failures)
        self._tally.task_seconds += block.seconds * count
        if self._reporter is not None:
            self._reporter.advance(count, len(failures))
        data = b"".join(lines)
        if self.ordered:
            self._order.put(block.index, data, count)
        elif data:
            self._output.write(data)
        return failures

    def _fail(self, index: int, item: object, failure: Failure, failures: list[str]) -> bytes:
        """Note a failure; give the line of its item, empty where it has none."""
        shown = shorten(item.text if isinstance(item, BadItem) else item)
        failures.append(f"item {index} ({self._items.where(index) or shown}): {failure}")
        if self.on_error != "collect":
            return b""
        record = {"index": index, "item": self._item(item), "error": failure.as_json()}
        try:
            return encode(record).encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(record).encode() + b"\n"

    def _item(self, item: object) -> object:
        """An item as the output shows it."""
        if isinstance(item, BadItem):
            return item.text
        if self._items.kind == "jsonl" and isinstance(item, str):
            try:
                return parse(item)
            except (ValueError, RecursionError):
                return item
        return item

    def _tell(self, message: str) -> None:
        self._told += 1
        if self._told > _FAILURES_TOLD:
            return
        if self._reporter is None:
            _say(f"failed: {message}")
        else:
            with self._reporter.above():
                _say(f"failed: {message}")

    def _keep(self) -> str:
        """Write what was finished; say what became of it."""
        try:
            self._output.hurry(_LAST_WORDS_S)
            self._order.put_rest()
            kept = self._output.keep(_LAST_WORDS_S)
        except (OSError, Ended):
            kept = ""
        count = self._tally.done - (self._tally.failed if self.on_error == "stop" else 0)
        what = f"{count:,} item{'' if count == 1 else 's'} finished"
        if self._output.partial is None:
            return what
        return f"{what}, kept in {kept}" if kept else what

    def _close_reporter(self) -> None:
        if self._reporter is not None:
            self._reporter.close()


def _say(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens; the exit status says it too
