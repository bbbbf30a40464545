"""python -m benchmarks: measure manycore beside the installed peers."""

from __future__ import annotations

import argparse
import fnmatch
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import machine, report, runner, summary
from benchmarks.peers import ALL, BY_NAME
from benchmarks.workloads import load_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.base import Peer
    from benchmarks.spec import Workload

WIDTH = 260  # columns of the tables where the output is not a terminal


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="names, families or globs (default: all)")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="names or globs (default: all that are installed)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, interleaved (default: 3)")
    parser.add_argument("--workers", type=int, default=machine.usable_cores(), help="worker processes a pool")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements and the summary")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of such a file; measure nothing")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes: does it work at all?")
    parser.add_argument("--list", action="store_true", help="list workloads and peers")
    return parser


def choose_workloads(patterns: Sequence[str], known: Sequence[Workload]) -> list[Workload]:
    """Returns the workloads that match any of the patterns, in the order of the table; all for none.

    Raises:
        ValueError: A pattern matches nothing.
    """
    for pattern in patterns:
        if not any(_matches(workload, pattern) for workload in known):
            raise ValueError(f"no workload matches {pattern!r}; see --list")
    return [one for one in known if not patterns or any(_matches(one, pattern) for pattern in patterns)]


def _matches(workload: Workload, pattern: str) -> bool:
    return workload.family == pattern or fnmatch.fnmatchcase(workload.name, pattern)


def choose_peers(patterns: Sequence[str] | None) -> tuple[list[Peer], dict[str, str], list[str]]:
    """Returns the peers that take part, their versions, and what there is to say of those that do not."""
    said: list[str] = []
    chosen: list[Peer] = []
    versions: dict[str, str] = {}
    said += [
        f"unknown peer {pattern!r}: no adapter"
        for pattern in patterns or ()
        if not any(fnmatch.fnmatchcase(name, pattern) for name in BY_NAME)
    ]
    for peer in ALL:
        if patterns and not any(fnmatch.fnmatchcase(peer.name, pattern) for pattern in patterns):
            continue
        version = peer.version()
        if version is None:
            said.append(f"{peer.name}: not installed")
            continue
        chosen.append(peer)
        if peer.distribution:
            versions[peer.distribution] = version
    return chosen, versions, said


def _list(console: Console) -> None:
    for workload in load_all():
        measures = ", ".join(f"{measure.title} [{measure.unit}]" for measure in workload.measures)
        console.print(f"{workload.family:10} {workload.name:18} {measures}", soft_wrap=True, highlight=False)
    for peer in ALL:
        families = ", ".join(sorted(peer.families))
        console.print(f"peer       {peer.name:28} {peer.version() or 'not installed'} ({families})", highlight=False)


def _print(record: dict[str, Any], console: Console) -> None:
    known = {workload.name: workload for workload in load_all()}
    ran = dict.fromkeys(one["workload"] for one in record["measurements"])
    asked = {one["peer"] for one in record["measurements"]}
    peers = [peer for peer in ALL if peer.name in asked]
    table = summary.rows([known[name] for name in ran if name in known], peers, record["measurements"])
    report.show(record, table, peers, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(argv)
    console = Console(markup=False) if sys.stdout.isatty() else Console(markup=False, width=WIDTH)
    progress = Console(stderr=True, markup=False)
    if options.list:
        _list(console)
        return 0
    if options.show:
        _print(json.loads(options.show.read_text(encoding="utf-8")), console)
        return 0
    try:
        workloads = choose_workloads(options.workloads, load_all())
    except ValueError as error:
        progress.print(str(error), highlight=False)
        return 2
    peers, versions, said = choose_peers(options.peers)
    for line in said:
        progress.print(line, style="dim", highlight=False)
    rounds = 1 if options.quick else options.rounds

    def tell(outcome: runner.Outcome) -> None:
        figures = ", ".join(f"{key} {report.figure(value)}" for key, value in outcome.values.items())
        progress.print(
            f"round {outcome.round + 1}/{rounds} {outcome.workload:18} {outcome.peer:28} "
            f"{outcome.status:7} {outcome.seconds:5.1f} s  {figures}",
            soft_wrap=True,
            highlight=False,
        )

    described = machine.describe()
    limits = machine.Limits(quick=options.quick)
    if limits.missing:
        progress.print(limits.missing, highlight=False)
    execute = runner.Executor(
        {workload.name: workload.timeout for workload in workloads}, workers=options.workers, quick=options.quick
    )
    outcomes: list[runner.Outcome] = []
    measured: list[dict[str, float]] = []

    def execute_with_limits(job: runner.Job) -> runner.Outcome:
        if len(measured) <= job.round:
            measured.append(limits.measure())
        return execute(job)

    def keep(outcome: runner.Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    status = 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: with what was finished
    try:
        runner.run_all(runner.plan(workloads, peers, rounds), execute_with_limits, report=keep)
    except KeyboardInterrupt:
        progress.print("interrupted: the tables show what was finished")
        status = 130
    finally:
        signal.signal(signal.SIGTERM, before)
        limits.close()
    settings = {"workers": options.workers, "rounds": rounds, "quick": options.quick}
    record = runner.record(outcomes, machine=described, limits=measured, versions=versions, settings=settings)
    record["summary"] = summary.as_data(summary.rows(workloads, peers, record["measurements"]))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _print(record, console)
    return status


if __name__ == "__main__":
    sys.exit(main())
