"""Whether a process has the one thread that a fork needs: locks that others hold would stay locked in the copy.

Counted by the kernel, so threads of native libraries count as well. Those that know about forks end
theirs before one (pthread_atfork(3); OpenBLAS does), so after an import one fork is tried: what is
still there then would be there at every fork.
"""

from __future__ import annotations

import os
import select
import signal

__all__ = ["count", "settle"]

_TRIAL_S = 2.0  # for a child that does nothing but exit; one that does not is stuck on a lock


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
