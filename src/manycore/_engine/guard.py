"""The worker's part of a policy: what has to happen inside the process that runs the call.

    soft timeout    the parent sends SIGNAL when its clock says so; the handler raises `SoftTimeout` in the call, if
                    that call is still the one that runs and has really run so long: a late signal harms nobody
    memory limit    RLIMIT_DATA, while the call runs, is what the worker has plus what the call may take: the kernel
                    refuses more, and the interpreter raises MemoryError in the call
    retry_on        whether what the call raised is worth another try

RLIMIT_DATA counts what a process has to itself: heap, private mappings, the stacks of threads; also what is reserved
and not touched yet. Memory that is shared counts for nobody: arrays that came as arguments, shared memory. Code that
cannot bear the refusal (a C library that aborts) ends its worker, and the certificate says how.

Invariants:
    SoftTimeout is raised while `_armed`, and so in the call or at its very end, never in the worker's own code
    the limit is lifted before anything is said of the call's end, so that there is memory to say it
If a process dies: nothing of this outlives it.
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations: who waits for a first result waits for every import here.
import _signal as signal  # type: ignore[import-not-found]
import resource

from manycore._native.ring import now_ns

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Final

__all__ = ["SIGNAL", "Guard"]

# What the parent sends at a soft timeout: a signal that programs rarely use.
SIGNAL: Final = signal.SIGRTMIN + 7

_PAGE_BYTES: Final = resource.getpagesize()


class Guard:
    """Runs calls under a policy. One a policy and worker.

    Args:
        told: As `Policy.told` gives it.

    Attributes:
        name: What the tasks of this policy are called, or "".
        timeout_ns: How long one of them may run; 0 = as long as it likes.
        began_ns: When the last call began.
    """

    def __init__(self, told: tuple[int, int, int, str, tuple[type[BaseException] | str, ...]]) -> None:
        self.timeout_ns, self._soft_ns, self._memory_bytes, self.name, retry_on = told
        self._retry_on = frozenset(retry_on)
        self._armed = False
        self.began_ns = 0
        self._soft_timeout: type[BaseException] = BaseException
        if self._soft_ns:
            from manycore.errors import SoftTimeout  # now: the handler must not wait for an import

            self._soft_timeout = SoftTimeout

    def retries(self, error: BaseException) -> bool:
        """Whether what the call raised is worth another try. As an `except` clause finds it: runs nobody's code."""
        kinds = type(error).__mro__
        if not self._retry_on.isdisjoint(kinds):
            return True
        return any(f"{kind.__module__}.{kind.__qualname__}" in self._retry_on for kind in kinds)

    def call(
        self, begin: Callable[[], int], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function.

        Args:
            begin: Says on the worker's page that the item's code begins; returns now.
            function: The user's.
            args: Its arguments.
            kwargs: And those with a name.

        Returns:
            What it returned.

        Raises:
            BaseException: What it raised.
        """
        limits = None
        self.began_ns = now_ns()
        try:
            if self._soft_ns and signal.getsignal(SIGNAL) != self._late:
                signal.signal(SIGNAL, self._late)
            if self._memory_bytes:
                limits = self._limit()
            try:
                self._armed = True  # the parent may see on the page what comes next
                self.began_ns = begin()
                return function(*args, **kwargs)
            finally:
                self._armed = False
        finally:  # also when SoftTimeout came in the one above
            if limits is not None:
                resource.setrlimit(resource.RLIMIT_DATA, limits)

    def _late(self, _signum: int, _frame: FrameType | None) -> None:
        if self._armed and now_ns() - self.began_ns >= self._soft_ns:
            self._armed = False
            raise self._soft_timeout(f"the call has run longer than its soft timeout of {self._soft_ns / 1e9:g} s")

    def _limit(self) -> tuple[int, int]:
        """Bound what this process may have; returns the bounds before that."""
        before = resource.getrlimit(resource.RLIMIT_DATA)
        with open("/proc/self/statm", "rb", buffering=0) as file:
            held = int(file.read().split()[5]) * _PAGE_BYTES
        most = held + self._memory_bytes
        for bound in before:
            if bound != resource.RLIM_INFINITY:
                most = min(most, bound)
        resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
        return before
