"""Process life: start, watch, end.

    launcher.py     the one launcher of this process: launch(), forks, the end
    parent.py       the parent's side: one zygote, the table of children, the reaper thread
    first.py        the first zygote, executed before the launcher is imported
    handle.py       a zygote as its parent sees it, and the requests for it
    child.py        a launched process, as its parent sees it
    certificate.py  how a process ended
    zygote.py       the clean process that forks children
    spares.py       children forked in advance, which the parent asks itself
    threads.py      whether the zygote has the one thread that a fork needs
    worker.py       what a forked child does around the caller's function
    standard.py     the same children by the standard start methods, for pools that ask for one
    popen.py        how each start method starts a Process; bootstrap.py is the child's side
    unguarded.py    programs that start processes where their main module is imported
    main_module.py  the child's __main__, for those who pickle by reference
    lifeline.py     ties daemonic processes of the standard methods to their parent
    outcome.py      what a process's function returned or raised
    titles.py       what a process is called in lists of processes
    folder.py       the folder of a program's sockets, and its removal
    stacks.py       the Python stacks of a running process
    last_words.py   the Python stacks of one that a fatal signal ended
    tree.py         the processes below a process
    wire.py         the records between them
    interpreter.py  the command that executes a zygote
    roster.py       which processes of manycore run on this machine
    watch.py        a thread that calls back when a descriptor is ready
    machine.py      the cores and the memory that this process may use
    arguments.py    numbers that callers give
    oom.py          whether the out-of-memory killer was at work

A zygote imports this package as well, so its names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module as _import_module

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from manycore._launch.certificate import Certificate, ExitStatus
    from manycore._launch.child import Child
    from manycore._launch.first import ensure_started
    from manycore._launch.launcher import launch, preload, shutdown
    from manycore._launch.machine import cpu_count, memory_limit_bytes
    from manycore._launch.standard import launch_standard

_HOMES = {
    "Certificate": "certificate",
    "Child": "child",
    "ExitStatus": "certificate",
    "cpu_count": "machine",
    "ensure_started": "first",
    "launch": "launcher",
    "launch_standard": "standard",
    "memory_limit_bytes": "machine",
    "preload": "launcher",
    "shutdown": "launcher",
}

__all__ = [
    "Certificate",
    "Child",
    "ExitStatus",
    "cpu_count",
    "ensure_started",
    "launch",
    "launch_standard",
    "memory_limit_bytes",
    "preload",
    "shutdown",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
