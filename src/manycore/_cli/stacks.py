"""`manycore stacks PID`: where processes are, asked of a handler in C that answers whatever the interpreter does."""

from __future__ import annotations

import multiprocessing
import os

import click

import manycore
from manycore._cli.exits import FAILED, CommandError
from manycore._launch import popen, stacks
from manycore._launch.roster import HELPERS, family

__all__ = ["command"]

# Frames of these, at the bottom of a stack, led to the code that the process was given: the same in all processes.
_BENEATH = tuple(f'  File "{os.path.dirname(module.__file__ or "")}{os.sep}' for module in (manycore, multiprocessing))
_BENEATH += ('  File "<string>"', '  File "<frozen runpy>"')
_FORKED = f'  File "{popen.__file__}", line '  # ... in _bootstrap: what is beneath belongs to the parent, at its fork


@click.command("stacks")
@click.argument("pid", type=int)
@click.option(
    "--timeout", type=float, default=2.0, show_default=True, help="Seconds that a process may take to answer."
)
@click.option("--full", is_flag=True, help="Also the frames of manycore's that led to the code of a process.")
def command(*, pid: int, timeout: float, full: bool) -> None:
    """Show where a program's processes are, also when they are stuck.

    PID is a process that manycore started, or a program: then it is all that the program started. (The program
    itself does not answer: manycore installs no handler of a signal there.)
    """
    members = family(pid)
    asked = [entry for entry in members if entry.role not in {"program", *HELPERS}]
    if not members:
        raise CommandError(f"{pid} is no process of manycore's; `manycore ps` shows those that run")
    silent = 0
    for entry in asked:
        click.echo(f"{entry.pid} {entry.title}{f' [{entry.task}]' if entry.task else ''} ({entry.state})")
        try:
            report = stacks.read(entry.pid, timeout).rstrip()
            click.echo(report if full else shorten(report))
        except (LookupError, TimeoutError, OSError) as error:
            silent += 1
            click.echo(f"  {error}")
        click.echo()
    if not asked:
        click.echo(f"{pid} has started no process that still runs")
    if silent and silent == len(asked):
        raise click.exceptions.Exit(FAILED)


def shorten(report: str) -> str:
    """Stacks, innermost frame first, without the frames beneath the user's code; of none but those, the innermost."""
    kept: list[str] = []
    frames: list[str] = []
    forked = False
    for line in [*report.splitlines(), ""]:
        if line.startswith("  "):
            forked = forked or (line.startswith(_FORKED) and line.endswith(" in _bootstrap"))
            if not forked:
                frames.append(line)
            continue
        while len(frames) > 1 and frames[-1].startswith(_BENEATH):
            frames.pop()
        kept += [*frames, line]
        frames, forked = [], False
    return "\n".join(kept[:-1])
