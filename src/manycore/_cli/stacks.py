"""`manycore stacks PID`: where processes are, asked of a handler in C that answers whatever the interpreter does."""

from __future__ import annotations

import click

from manycore._cli.exits import FAILED, CommandError
from manycore._launch import stacks
from manycore._launch.roster import family

__all__ = ["command"]


@click.command("stacks")
@click.argument("pid", type=int)
@click.option(
    "--timeout", type=float, default=2.0, show_default=True, help="Seconds that a process may take to answer."
)
def command(*, pid: int, timeout: float) -> None:
    """Show where a program's processes are, also when they are stuck.

    PID is a process that manycore started, or a program: then it is all that the program started. (A program
    itself does not answer, as manycore takes no signal of its own program's.)
    """
    members = family(pid)
    asked = [entry for entry in members if entry.role not in {"program", "zygote", "spare"}]
    if not members:
        raise CommandError(f"{pid} is no process of manycore's; `manycore ps` shows those that run")
    silent = 0
    for entry in asked:
        click.echo(f"{entry.pid} {entry.title}{f' [{entry.task}]' if entry.task else ''} ({entry.state})")
        try:
            click.echo(stacks.read(entry.pid, timeout).rstrip())
        except (LookupError, TimeoutError, OSError) as error:
            silent += 1
            click.echo(f"  {error}")
        click.echo()
    if not asked:
        click.echo(f"{pid} has started no process that still runs")
    if silent and silent == len(asked):
        raise click.exceptions.Exit(FAILED)
