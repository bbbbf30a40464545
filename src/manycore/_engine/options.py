"""`options`: what the tasks of a pool, or of an executor, can be promised. It is the same for both."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

    from manycore._engine.local import Engine
    from manycore._engine.policy import Policy

__all__ = ["TakesOptions"]


class TakesOptions:
    """What has workers, and gives views of itself whose tasks have promises."""

    _engine: Engine
    _policy: Policy | None = None  # of a view

    def _view(self, policy: Policy) -> Any:
        """This, with a policy for its tasks."""
        raise NotImplementedError

    def options(
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
    ) -> Self:
        """The same, with promises for the tasks that are handed to what is returned.

        Args:
            timeout: Seconds that one try of a task may take. After that its worker is killed, whatever it does, and
                replaced; the task fails with `TaskTimeout`.
            soft_timeout: Seconds after which `SoftTimeout` is raised inside the task, once, so that it can end in
                order. It is not heard in the middle of code that never comes back to Python: for that is `timeout`.
            retries: How often a task that failed is tried again.
            retry_on: Only for these exceptions; by default any `Exception`, `WorkerDied` and `TaskTimeout` included.
                A task that kills a worker again when it is retried fails with `PoisonTask`, unless `retry_on` names
                `WorkerDied`.
            backoff: Seconds to wait before the first retry; twice as long before each later one, up to a minute, and
                each wait is cut at random by up to a half, so that tasks that failed together do not all come back
                together. Or a callable that is given the number of the retry, from 1, and returns seconds.
            priority: Higher ones go first among what no worker has begun; 0 for tasks without.
            memory_limit: Bytes that a task may take beyond what its worker holds; more raises MemoryError in it.
            name: What messages, `ps` and `current_task()` call the tasks.

        Returns:
            A view of it: the same methods, workers and end.

        Raises:
            ValueError, TypeError: An option is out of range, or of the wrong type.
            TaskPicklingError: An exception of `retry_on` cannot be sent to workers.
        """
        from manycore._engine.policy import Policy

        policy = Policy(
            timeout=timeout,
            soft_timeout=soft_timeout,
            retries=retries,
            retry_on=retry_on,
            backoff=backoff,
            priority=priority,
            memory_limit=memory_limit,
            name=name,
        )
        view: Self = self._view(self._engine.bind(policy))
        return view
