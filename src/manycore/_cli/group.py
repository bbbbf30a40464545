"""The group of commands, and how the process ends."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

import click

import manycore
from manycore._cli import COMMANDS
from manycore._cli.exits import INTERRUPTED, PIPE_CLOSED

__all__ = ["run"]


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's signature)
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"manycore._cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # here, because click would begin a new line before ours
            click.echo("manycore: interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" The commands are {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="'manycore COMMAND --help' explains one command.",
)
@click.version_option(
    manycore.__version__,
    "-V",
    "--version",
    message=f"manycore %(version)s ({sys.implementation.name} {sys.version.split()[0]})",
)
def _group() -> None:
    """All the cores of this machine for a Python function."""


def _fill_standard_descriptors() -> None:
    """Open what the shell has closed (`2>&-`), lest a file of ours gets its number."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:
        null = os.open(os.devnull, os.O_RDWR)
    os.close(null)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (for the life of the process)


def run() -> None:
    """Run the command line of this process; never returns."""
    _fill_standard_descriptors()
    try:
        # click gives back the status of a command that ends with click.exceptions.Exit
        status = _group(prog_name="manycore", standalone_mode=False) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 0
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("manycore: interrupted", err=True)
        status = INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has seen enough; what Python would still flush at exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = PIPE_CLOSED
    sys.exit(status)
