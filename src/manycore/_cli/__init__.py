"""The command line: `manycore COMMAND`, and `python -m manycore COMMAND`.

    group.py     the group of commands, and how the process ends
    exits.py     exit statuses, and the error that ends a command with one line
    map.py       `manycore map`, made of
        target.py    which function is meant           inputs.py, lines.py   what its items are
        task.py      the worker's side: call, encode   output.py             where lines go, in which order
        ending.py    Ctrl-C and the like, noted        summary.py            what is said at the end
    demo.py      `manycore demo`, and analysis.py, the work that it does
    ps.py, stacks.py, kill.py    the processes of programs that run, and what can be done about them
    doctor.py    `manycore doctor`, and checks.py, what it looks at

A command's file is imported when the command runs, not before, so that `manycore --help` stays fast:
`COMMANDS` holds what the help page needs. This file imports nothing, because workers of `manycore map` import
task.py through it.
"""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = ["COMMANDS", "main"]

# command -> (module of this package whose `command` it is, the line that the help page shows)
COMMANDS = {
    "map": ("map", "Run a function over files, lines or records, on all cores."),
    "demo": ("demo", "See one core, threads and processes do the same real work."),
    "ps": ("ps", "Show every process of manycore's, and what it does."),
    "stacks": ("stacks", "Show where a program's processes are, also when they are stuck."),
    "kill": ("kill", "End a program with all its processes."),
    "doctor": ("doctor", "Check this machine, and say what each finding means for you."),
}


def main() -> None:
    """Run the command line of this process; never returns."""
    try:
        run = import_module(f"{__name__}.group").run
    except KeyboardInterrupt:
        sys.stderr.write("manycore: interrupted\n")
        raise SystemExit(130) from None
    run()
