"""`manycore demo`: the same real work on one core, in threads and in processes.

The work is the standard library of the running interpreter, or a folder of one's own: each source file is parsed,
compiled and measured. All three ways call the same function on the same files in the same order (the largest first),
and must find the same; the files are read once before the clock runs, so that nobody pays for the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil
from rich.bar import Bar
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

import manycore
from manycore._cli.analysis import FileReport, FunctionReport, quiet, source_files, timed_analysis
from manycore._cli.exits import FAILED, CommandError
from manycore._launch.machine import cpu_count
from manycore._observe.progress import start_progress
from manycore.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["command"]

_BAR_WIDTH = 28  # columns
_BESIDE_BAR = 44  # columns that the figures take
_SHOWN = 10  # functions in the answer
_BUSY_MACHINE_CORES = 0.15  # others' use above which the figures are not this machine's best


@dataclass(frozen=True)
class _Run:
    """One way of doing the work, measured.

    Attributes:
        way: "serial", "threads" or "processes".
        workers: How many threads or processes did it.
        seconds: By the wall clock, the start of the workers included.
        cpu_seconds: What all of them computed together.
        others_cores: How many cores other programs kept busy meanwhile.
        reports: What was found, in the order of the files.
    """

    way: str
    workers: int
    seconds: float
    cpu_seconds: float
    others_cores: float
    reports: list[FileReport]

    @property
    def label(self) -> str:
        return "one core" if self.way == "serial" else f"{self.workers} {self.way}"


@click.command("demo")
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-j", "--workers", type=click.IntRange(min=1), help="Threads, and processes; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="Write the figures as one JSON object.")
@click.option(
    "--progress/--no-progress", default=None, help="Show progress on standard error; automatic on a terminal."
)
def command(*, folder: Path | None, workers: int | None, as_json: bool, progress: bool | None) -> None:
    """See one core, threads and processes do the same real work.

    The work: parse, compile and measure every Python source file below FOLDER, or of this Python's standard
    library. The answer: the ten most complex functions.
    """
    workers = workers or cpu_count()
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    files = source_files(root)
    if not files:
        raise CommandError(f"there are no Python source files to measure in {root}", FAILED)
    for path, _ in files:
        with contextlib.suppress(OSError):  # it is told of among the results
            Path(path).read_bytes()
    quiet()
    shown = sys.stderr.isatty() if progress is None else progress

    def run(way: str, count: int, work: Callable[[int, list[str]], Iterable[tuple[int, FileReport, float]]]) -> _Run:
        # Progress counts thousands of bytes: the files that come first are a hundred times as long as the last.
        name = "one core, kB" if way == "serial" else f"{count} {way}, kB"
        return _measure(way, count, work, files, name if shown else None)

    runs = [
        run("serial", 1, _one_by_one),
        run("threads", workers, _in_threads),
        run("processes", workers, _in_processes),
    ]
    if not all(run.reports == runs[0].reports for run in runs):
        raise CommandError("the three ways did not find the same: please report this", FAILED)
    answer = sorted(
        ((function, report.path) for report in runs[0].reports for function in report.most_complex),
        key=lambda entry: (-entry[0].complexity, entry[1], entry[0].line),
    )[:_SHOWN]
    if as_json:
        click.echo(json.dumps(_as_json(runs, answer), indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 100  # into a pipe or a file lines need not be short
        bar_width = max(4, min(_BAR_WIDTH, console.width - _BESIDE_BAR))
        name = str(folder) if folder else f"The standard library of Python {platform.python_version()}"
        console.print(_page(name, root, runs, answer, bar_width))


def _one_by_one(_count: int, paths: list[str]) -> Iterable[tuple[int, FileReport, float]]:
    for index, path in enumerate(paths):
        yield index, *timed_analysis(path)


def _in_threads(count: int, paths: list[str]) -> Iterable[tuple[int, FileReport, float]]:
    with ThreadPoolExecutor(count) as executor:
        for index, (report, seconds) in enumerate(executor.map(timed_analysis, paths)):
            yield index, report, seconds


def _in_processes(count: int, paths: list[str]) -> Iterable[tuple[int, FileReport, float]]:
    with Pool(count, quiet, name="demo", preload=(timed_analysis.__module__,)) as pool:
        for outcome in pool.outcomes(timed_analysis, paths, ordered=False):
            if outcome.error is not None:
                raise CommandError(f"a worker failed on {outcome.item}: {outcome.error}", FAILED)
            yield outcome.index, *outcome.result


def _measure(
    way: str,
    count: int,
    work: Callable[[int, list[str]], Iterable[tuple[int, FileReport, float]]],
    files: list[tuple[str, int]],
    label: str | None,
) -> _Run:
    reports = [FileReport("")] * len(files)
    cpu_seconds = 0.0
    reporter = start_progress(label, total=sum(size // 1000 for _, size in files), transient=True)
    busy_before, own_before = _busy_seconds(), time.process_time()
    started = time.perf_counter()
    try:
        for index, report, seconds in work(count, [path for path, _ in files]):
            reports[index] = report
            cpu_seconds += seconds
            if reporter is not None:
                reporter.advance(files[index][1] // 1000)
        elapsed = time.perf_counter() - started
    finally:
        if reporter is not None:
            reporter.close()
    own = time.process_time() - own_before + (cpu_seconds if way == "processes" else 0.0)
    others = max(0.0, _busy_seconds() - busy_before - own) / elapsed
    return _Run(way, count, elapsed, cpu_seconds, others, reports)


def _busy_seconds() -> float:
    """Seconds that all cores together have spent at work since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)


def _page(name: str, root: Path, runs: list[_Run], answer: list[tuple[FunctionReport, str]], bar_width: int) -> Group:
    serial, _, processes = runs
    reports = serial.reports
    measured = [report for report in reports if not report.error]
    head = Text(
        f"{name}: {len(reports):,} files, "
        f"{sum(report.lines for report in measured):,} lines, "
        f"{sum(report.functions for report in measured):,} functions"
    )
    longest_s = max(run.seconds for run in runs)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("time", justify="left", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("speed-up", justify="right", no_wrap=True)
    table.add_column("cores used", justify="right", no_wrap=True)
    for run, colour in zip(runs, ("default", "yellow", "green"), strict=True):
        table.add_row(
            Text(run.label),
            Bar(longest_s, 0, run.seconds, width=bar_width, color=colour),
            f"{run.seconds:.2f} s",
            Text(f"{serial.seconds / run.seconds:.2f}x", colour if run is processes else ""),
            f"{run.cpu_seconds / run.seconds:.2f}",
        )
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    found.add_column("paths", justify="right", no_wrap=True)
    found.add_column("lines", justify="right", no_wrap=True)
    found.add_column("most complex functions", overflow="fold")
    found.add_column("where", overflow="fold")
    for function, path in answer:
        where = f"{os.path.relpath(path, root)}:{function.line}"
        found.add_row(str(function.complexity), str(function.lines), function.name, where)
    functions: list[Text | Table] = [Text(), found, Text(), _longest(measured, root)] if answer else []
    return Group(head, Text(), table, Text(), *_sentences(runs), *functions)


def _sentences(runs: list[_Run]) -> list[Text]:
    serial, threads, processes = runs
    lock_on = getattr(sys, "_is_gil_enabled", lambda: True)()
    lines = []
    if lock_on:
        lines.append(
            f"Threads took {threads.seconds / serial.seconds:.2f} times as long as one core: "
            "the interpreter lock lets one of them run at a time."
        )
    else:
        lines.append(f"Threads were {serial.seconds / threads.seconds:.2f} times as fast: the interpreter lock is off.")
    lines.append(
        f"Processes were {serial.seconds / processes.seconds:.2f} times as fast, their start included: "
        "each has an interpreter of its own."
    )
    others = max(run.others_cores for run in runs)
    if others > _BUSY_MACHINE_CORES:
        lines.append(
            f"Other programs kept {others:.1f} of {os.cpu_count()} cores busy meanwhile: without them this is faster."
        )
    return [Text(line) for line in lines]


def _longest(reports: list[FileReport], root: Path) -> Text:
    longest = [(report.longest, report.path) for report in reports if report.longest is not None]
    function, path = max(longest, key=lambda entry: entry[0].lines)
    where = f"{os.path.relpath(path, root)}:{function.line}"
    return Text(f"The longest function: {function.name}, {function.lines} lines, {where}")


def _as_json(runs: list[_Run], answer: list[tuple[FunctionReport, str]]) -> dict[str, object]:
    serial = runs[0]
    return {
        "version": manycore.__version__,
        "python": platform.python_version(),
        "cores": cpu_count(),
        "files": len(serial.reports),
        "lines": sum(report.lines for report in serial.reports),
        "functions": sum(report.functions for report in serial.reports),
        "unreadable": [{"path": report.path, "error": report.error} for report in serial.reports if report.error],
        "runs": [
            {
                "way": run.way,
                "workers": run.workers,
                "seconds": round(run.seconds, 4),
                "cpu_seconds": round(run.cpu_seconds, 4),
                "speedup": round(serial.seconds / run.seconds, 3),
                "others_cores": round(run.others_cores, 2),
            }
            for run in runs
        ],
        "most_complex": [{**function._asdict(), "path": path} for function, path in answer],
    }
