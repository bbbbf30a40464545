"""`manycore kill PID`: a whole tree of processes, asked first and made to end then."""

from __future__ import annotations

import os
import select
import signal
import time

import click

from manycore._cli.exits import FAILED, CommandError
from manycore._launch import tree
from manycore._launch.roster import family

__all__ = ["command"]

_SURE_S = 5.0  # for the kernel to end what was sent SIGKILL


@click.command("kill")
@click.argument("pid", type=int)
@click.option("--grace", type=float, default=3.0, show_default=True, help="Seconds from SIGTERM to SIGKILL.")
def command(*, pid: int, grace: float) -> None:
    """End a program with all its processes.

    PID is a program that uses manycore, or a process that manycore started. It is sent SIGTERM; what is left of it
    and of the processes below it after the grace is killed.
    """
    members = family(pid)
    if not members:
        raise CommandError(f"{pid} is no process of manycore's; `manycore ps` shows those that run")
    pids = [pid, *tree.descendants(pid)]
    pidfds = tree.hold(pids)
    try:
        signal.pidfd_send_signal(pidfds[0], signal.SIGTERM)
        signal.pidfd_send_signal(pidfds[0], signal.SIGCONT)
    except (IndexError, ProcessLookupError):  # it has just ended
        pass
    except PermissionError as error:
        raise CommandError(f"{pid}: {error.strerror}", FAILED) from None
    left = _wait(pidfds, grace)
    forced = len(left)
    for late in tree.descendants(pid):  # what it started meanwhile
        left += tree.hold([late])
    for pidfd in left:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
    stuck = _wait(left, _SURE_S)
    for pidfd in {*pidfds, *left}:
        os.close(pidfd)
    click.echo(f"{len(pids)} processes ended{f', {forced} of them by SIGKILL' if forced else ''}")
    if stuck:
        raise CommandError(f"{len(stuck)} processes are stuck in the kernel and have not ended yet", FAILED)


def _wait(pidfds: list[int], seconds: float) -> list[int]:
    """Those of the processes that have not ended after `seconds`."""
    deadline = time.monotonic() + seconds
    left = list(pidfds)
    while left:
        poller = select.poll()
        for pidfd in left:
            poller.register(pidfd, select.POLLIN)
        ended = {fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if not ended:
            break
        left = [pidfd for pidfd in left if pidfd not in ended]
    return left
