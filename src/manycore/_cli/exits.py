"""How a command ends: the exit statuses, and the error that ends it with one line.

0    done, and every item succeeded
1    some items failed, or the work could not be finished
2    bad usage: nothing was run
130  Ctrl-C (as shells say it: 128 + SIGINT)
141  the reader of our output went away (128 + SIGPIPE)
143  SIGTERM (128 + SIGTERM)
"""

from __future__ import annotations

import signal
from typing import IO, Any

import click

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + signal.SIGPIPE
TERMINATED = 128 + signal.SIGTERM


class CommandError(click.ClickException):
    """Ends a command with one line on standard error.

    Args:
        message: Fact, identity, next step; one line.
        status: One of this module's statuses.
        detail: Text to show before the line, such as the traceback of the user's own module.
    """

    def __init__(self, message: str, status: int = BAD_USAGE, *, detail: str = "") -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # a class variable of click, meant to be set so
        self.detail = detail

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the detail and the line to standard error."""
        if self.detail:
            click.echo(self.detail.rstrip("\n"), file=file, err=file is None)
        click.echo(f"manycore: error: {self.message}", file=file, err=file is None)
