"""What a freshly forked child does before and after the caller's function: it becomes a process of its own.

Protocol of the child, in this order:
    1  its own process group, so that it can be ended with all its children, and Ctrl-C passes it by
    2  the lifeline: its own open file of a pipe that the parent and its zygotes hold, told to send SIGKILL
       to the whole group when the last of them is gone. The kernel does that, so it works in a child that
       is stopped, or loops in C with the interpreter lock held
    3  if the lifeline has already ended, it exits: all of them died between the fork and 2
    4  every descriptor of the zygote's is closed. A spare child waits here for its request
    5  the parent's standard descriptors and limits; STARTED, with its own pidfd. Only after that may anything of
       the caller's run: a launch without a STARTED has had no effect, and can be repeated when the zygote dies
    6  the function; then exit as an interpreter does

If a process dies:
    the child before 5: the zygote reports EXITED, and the launch has had no effect.
    the zygote: the child goes on, for the parent holds the pipe as well.
    the parent: the zygote kills the group, at once or, where the child may linger, when it has had time to
        notice. If the zygote is dead too, the kernel kills the group (2).

Unlike multiprocessing: no PR_SET_PDEATHSIG, which follows the thread that forked and would end all
children with the zygote; no watcher thread, so the child may fork safely.
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations: they write to, and so copy, many pages.
import _signal  # type: ignore[import-not-found]
import gc
import marshal
import os
import resource
import sys

from manycore._launch import habits, wire
from manycore._native import process as _native

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_LIMITS = tuple(  # of RLIMIT_*: those that a program sets for its children
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "NOFILE", "NPROC", "STACK")
)
_inherited = 0  # modules that this child has from its zygote
_asked = False  # whether the zygote wants to know which pages it writes to


def prepare(lifeline: int, stack: int, keep: Sequence[int], asked: bool) -> None:
    """Turn the fork of a zygote into a process of its own (steps 1 to 4); it may then wait for its request.

    Args:
        lifeline: This child's own open file of the pipe.
        stack: The memfd for its stacks.
        keep: Which other descriptors stay open.
        asked: It is to tell, at its end, which pages it wrote to.
    """
    global _asked, _inherited
    _asked = asked
    _inherited = len(sys.modules)
    _native.settle(lifeline, stack, wire.STACK_FD, (wire.STACK_FD, lifeline, *keep))
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def become(launch_id: int, control: int, parent_pid: int, standard: Sequence[int | None]) -> None:
    """Take a request (step 5): the parent's standard descriptors and limits, and STARTED.

    Args:
        launch_id: The id that the parent gave this launch.
        control: The zygote's end of the control socket; closed here, as are the descriptors in `standard`.
        parent_pid: Whose limits are taken over.
        standard: What becomes descriptors 0, 1 and 2; None for one that is closed in the parent.
    """
    for number, fd in enumerate(standard):
        if fd is not None:
            os.dup2(fd, number)
            os.close(fd)
    _native.follow(parent_pid, _LIMITS)
    started = (wire.STARTED, launch_id, os.getpid())
    _native.announce(control, marshal.dumps((*started, True)), marshal.dumps((*started, False)))
    for number, fd in enumerate(standard):
        if fd is None:
            os.close(number)
    _match_streams(standard)
    gc.enable()


def _match_streams(standard: Sequence[int | None]) -> None:
    """Make `sys.stdout` and `sys.stderr` fit the descriptors beneath them, which are not the zygote's."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            continue
        if standard[number] is None:
            setattr(sys, name, None)
        elif name == "stdout" and not stream.write_through and stream.line_buffering != os.isatty(number):
            stream.reconfigure(line_buffering=not stream.line_buffering)


def run(entry: str, payload: bytes | None, payload_fd: int | None, fds: list[int]) -> int:
    """Call `entry`, and end as an interpreter does: threads joined, exit handlers run, streams flushed.

    Args:
        entry: "package.module:function".
        payload: What the function gets, unless it lies in `payload_fd`.
        payload_fd: A memfd that holds the payload.
        fds: What the function gets beside it.

    Returns:
        The exit code.
    """
    try:
        if payload_fd is not None:
            payload = read_all(payload_fd)
        module_name, _, function_name = entry.partition(":")
        __import__(module_name)
        returned = getattr(sys.modules[module_name], function_name)(payload, fds)
        code = returned if isinstance(returned, int) else 0
    except BaseException as error:
        code = _report(error)
    try:
        habits.tell(_inherited, _asked)
    except Exception:  # what only saves time
        pass
    try:
        _finish()
    except BaseException as error:
        code = _report(error) or code
    _flush()
    return code


def end_fork() -> NoReturn:
    """End a process that the caller's code has forked, and which comes back to ours: at once, and of ours runs nothing.

    No exit handlers, no finalizers: they are the other process's. What is being handled is reported.
    """
    code = 1
    try:
        error = sys.exc_info()[1]
        code = 0 if error is None else _report(error)
        _flush()
    finally:
        os._exit(code & 0xFF)


def _flush() -> None:
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (AttributeError, OSError, ValueError):
            pass


def _report(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return exit_code_of(error)
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except Exception:  # a broken hook, or no stderr: the exit code must do
        pass
    return 1


def exit_code_of(error: SystemExit) -> int:
    """The exit code that `error` stands for; a message that it carries goes to `sys.stderr`."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code
    if sys.stderr is not None:
        sys.stderr.write(f"{error.code}\n")
    return 1


def read_all(fd: int) -> bytes:
    """What a memfd holds; closes it."""
    size = os.fstat(fd).st_size
    with open(fd, "rb", buffering=0) as file:
        file.seek(0)
        data = file.read(size)
        while len(data) < size:
            more = file.read(size - len(data))
            if not more:
                break
            data += more
    return data


def _finish() -> None:
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    import atexit

    atexit._run_exitfuncs()
