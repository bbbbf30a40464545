"""`manycore ps`: every process of manycore's of this user, as a tree; read from /proc, so nothing can hold it up."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator

import click

from manycore._launch.roster import HELPERS, Entry, roster
from manycore._observe import locks as lock_report

__all__ = ["command"]


@click.command("ps")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also zygotes, fork servers and spare children.")
@click.option("--locks", is_flag=True, help="Show who holds which lock and who waits for whom; deadlocks first.")
def command(*, as_json: bool, everything: bool, locks: bool) -> None:
    """Show every process of manycore's, and what it does.

    Each program is followed by the processes that it started.
    """
    if locks:
        for line in lock_report.report():
            click.echo(line)
        return
    entries = [entry for entry in roster() if everything or entry.role not in HELPERS]
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry._asdict(), ensure_ascii=False))
        return
    if not entries:
        click.echo("no process of manycore's runs")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in _lines(entries):
        click.echo(line[:width])


def _lines(entries: list[Entry]) -> Iterator[str]:
    yield f"{'PID':>8} {'CPU s':>8} {'MB':>6} {'AGE s':>7}  {'STATE':<13} PROCESS"
    depths: dict[int, int] = {}
    for entry in entries:
        depth = depths[entry.pid] = depths.get(entry.parent, -1) + 1
        figures = f"{entry.pid:8} {entry.cpu_seconds:8.1f} {entry.rss_bytes / 1e6:6.0f} {entry.age_seconds:7.0f}"
        runs = f" [{entry.task}]" if entry.task else ""
        yield f"{figures}  {entry.state:<13} {'  ' * depth}{entry.title}{runs}"
