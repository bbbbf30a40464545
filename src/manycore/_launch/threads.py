"""Whether a process has the one thread that a fork needs: locks that others hold would stay locked in the copy.

Counted by the kernel, so threads of native libraries count as well. Those that know about forks end
theirs before one (pthread_atfork(3); OpenBLAS does), so after an import one fork is tried: what is
still there then would be there at every fork.
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations: who waits for a first result waits for every import here.
import _signal as signal  # type: ignore[import-not-found]
import gc
import os
import select

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["count", "hooks_here", "no_longer_alone", "settle", "unhooked"]

_TRIAL_S = 2.0  # for a child that does nothing but exit; one that does not is stuck on a lock


_alone = True  # whether the forks of this process are the zygote's, which has one thread


def count() -> int:
    """The threads of this process."""
    return os.stat("/proc/self/task").st_nlink - 2


def settle() -> bool:
    """Let native libraries end their threads, by one trial fork if there are any.

    Returns:
        Whether this process has one thread now.
    """
    if count() == 1:
        return True
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(_TRIAL_S * 1000):
        os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    os.waitpid(pid, 0)
    return count() == 1


def unhooked(change: Callable[[], object]) -> None:
    """Call what imports modules, and keep `threading` from putting in order, in each child, what is in order.

    What it does after a fork concerns the threads that were not copied, and the locks that they held. A zygote has
    none, so that is left out: it would write a third of all the pages that a child writes. The forks that its children
    make are like everybody's.
    """
    register = os.register_at_fork

    def register_all_but_one(**hooks: Callable[[], object]) -> None:
        hook = hooks.get("after_in_child")
        if hook is not None and getattr(hook, "__module__", "") == "threading":
            hooks["after_in_child"] = lambda: None if _alone else hook()
        register(**hooks)

    os.register_at_fork = register_all_but_one  # type: ignore[assignment]
    try:
        change()
    finally:
        os.register_at_fork = register


def hooks_here() -> list[Callable[[], object]] | None:
    """What is called before and after a fork in the process that forks, beside what is called in the child.

    Found as what else is in the list where a new one comes to be, so objects must not be frozen (`gc.freeze`).

    Returns:
        They; None if they cannot be found.
    """
    found: list[Callable[[], object]] = []

    def mark() -> None:
        pass

    os.register_at_fork(before=mark, after_in_parent=mark)
    places = [each for each in gc.get_referrers(mark) if type(each) is list]
    for hooks in places:
        hooks.remove(mark)
        found += hooks
    return found if len(places) == 2 else None


def no_longer_alone() -> None:
    """In a child of the zygote: it may have threads when it forks."""
    global _alone
    _alone = False
