"""Policies: what a task is promised beside being run. One object for all the tasks that are submitted with it.

A task without options has no policy, and pays nothing for those that have. The parent keeps to most of a policy
(`dispatch.py`). What only the worker can do (raise inside the call, bound its memory, know its exception, show its
name) travels as a guard, which is sent once, as functions are (`guard.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from manycore import errors
from manycore._engine.settings import nanoseconds
from manycore._launch.arguments import integer, seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["BACKOFF_MOST", "Policy", "make_policy"]

# The longest wait that a number given as `backoff` grows to, in seconds: long enough for whatever is overloaded, short
# enough that somebody who watches sees it go on.
BACKOFF_MOST: Final = 60.0

# The least that a call must be allowed: beneath it the interpreter could not raise MemoryError in good order.
LEAST_MEMORY_BYTES: Final = 1 << 20

_BROAD: Final = frozenset((Exception, BaseException))


class Policy:
    """What tasks are promised. The arguments are those of `Pool.options`, and are checked here.

    Attributes:
        timeout_ns: How long one try of one item may take before its worker is killed; 0 = as long as it likes.
        soft_ns: When `SoftTimeout` is raised inside the call; 0 = never.
        first_ns: The earlier of the two; 0 = neither.
        retries: How often an item may begin again after it failed.
        retry_on: The exceptions that are worth another try.
        deaths: How many workers an item may kill before it counts as poison.
        again_late: Whether an item that ran too long is tried again.
        backoff: Seconds before the first retry, or who is asked for them.
        priority: Higher ones go first.
        memory_bytes: What a call may take beyond what its worker holds when it begins; 0 = any.
        name: What messages and titles call the task.
        guard: The part of a frame that tells the worker; empty for nothing.
        keeper: What keeps the guard where it is.
    """

    __slots__ = (
        "again_late",
        "backoff",
        "deaths",
        "first_ns",
        "given",
        "guard",
        "keeper",
        "memory_bytes",
        "name",
        "priority",
        "retries",
        "retry_on",
        "soft_ns",
        "timeout_ns",
    )

    def __init__(
        self,
        *,
        timeout: float | None = None,
        soft_timeout: float | None = None,
        retries: int = 0,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        backoff: float | Callable[[int], float] = 0.0,
        priority: int = 0,
        memory_limit: int | None = None,
        name: str = "",
    ) -> None:
        self.given: dict[str, Any] = {
            "timeout": timeout,
            "soft_timeout": soft_timeout,
            "retries": retries,
            "retry_on": retry_on,
            "backoff": backoff,
            "priority": priority,
            "memory_limit": memory_limit,
            "name": name,
        }
        self.timeout_ns = nanoseconds("timeout", timeout)
        self.soft_ns = nanoseconds("soft_timeout", soft_timeout)
        if self.timeout_ns and self.soft_ns >= self.timeout_ns:
            raise ValueError(f"soft_timeout must be less than timeout, not {soft_timeout!r} and {timeout!r}")
        self.first_ns = self.soft_ns or self.timeout_ns
        self.retries = integer("retries", retries, least=0)
        self.retry_on = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        for kind in self.retry_on:
            if not issubclass(type(kind), type) or not issubclass(kind, BaseException):
                raise TypeError(f"retry_on must be an exception class or a tuple of some, not {retry_on!r}")
        self.deaths, self.again_late = 0, False
        if self.retries:
            caught = [kind for kind in self.retry_on if issubclass(errors.WorkerDied, kind)]
            if caught:
                self.deaths = 1 if _BROAD.issuperset(caught) else self.retries
            self.again_late = any(issubclass(errors.TaskTimeout, kind) for kind in self.retry_on)
        self.backoff = backoff if callable(backoff) else seconds("backoff", backoff)
        self.priority = integer("priority", priority)
        self.memory_bytes = 0
        if memory_limit is not None:
            self.memory_bytes = integer("memory_limit", memory_limit, least=LEAST_MEMORY_BYTES)
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {name!r}")
        self.name = name
        self.guard = b""
        self.keeper: object = None

    def but(self, **options: Any) -> Self:
        """The same with other options."""
        return type(self)(**{**self.given, **options})

    def told(self) -> tuple[int, int, int, str, tuple[type[BaseException] | str, ...]] | None:
        """What the worker has to know: (timeout_ns, soft_ns, memory_bytes, name, what to retry); None = nothing.

        This package's own exceptions go by name: most workers never import them.
        """
        retry_on = tuple(
            f"{kind.__module__}.{kind.__qualname__}" if kind.__module__.startswith("manycore.") else kind
            for kind in (self.retry_on if self.retries else ())
        )
        if not (self.first_ns or self.memory_bytes or self.name or retry_on):
            return None
        return self.timeout_ns, self.soft_ns, self.memory_bytes, self.name, retry_on

    def wait_ns(self, attempt: int) -> int | None:
        """How long to wait before retry `attempt` (from 1); None where the user's callable has to be asked."""
        if callable(self.backoff):
            return None
        import random  # seldom needed, and a third of what a pool imports besides its own

        wait = min(BACKOFF_MOST, self.backoff * 2.0 ** min(attempt - 1, 64))
        return int(wait * random.uniform(0.5, 1.0) * 1e9)  # noqa: S311  (spreads retries; no secret)

    def ask_ns(self, attempt: int) -> int:
        """What the user's callable says. Without locks.

        Raises:
            Exception: What it raised, or that it gave no number of seconds.
        """
        if not callable(self.backoff):
            return 0
        return int(seconds("what backoff() returned", self.backoff(attempt)) * 1e9)


def make_policy(**options: Any) -> Policy | None:
    """A policy; None for one that promises nothing. The arguments are those of `Policy`."""
    policy = Policy(**options)
    return policy if policy.told() is not None or policy.priority else None
