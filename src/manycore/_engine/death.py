"""What is said of tasks and of deaths. In the parent, under the engine's locks: nobody's `repr` is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from manycore import errors

if TYPE_CHECKING:
    from manycore._engine.calls import Task
    from manycore._engine.functions import Function
    from manycore._engine.orders import Failed
    from manycore._engine.policy import Policy
    from manycore._launch import Certificate

__all__ = ["death_error", "describe_call", "describe_item", "shorten"]

_SHORT = 60  # characters of a string that a message shows; of an argument, twice as many
_MANY = 20  # items of a container that it shows
_PATHS = frozenset(("PosixPath", "PurePosixPath"))
_PLAIN = frozenset((str, bytes, float, complex, bool, type(None), type(...)))
_CONTAINERS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
}


def shorten(value: Any, depth: int = 2) -> str:
    """A value in few characters. Runs nobody's code: what is not plain is named by its type."""
    kind: Any = type(value)
    if kind in _CONTAINERS:
        if len(value) > _MANY or depth == 0:
            return f"<{kind.__name__} of {len(value)}>"
        if kind is dict:
            parts = [f"{shorten(key, depth - 1)}: {shorten(item, depth - 1)}" for key, item in value.items()]
        else:
            parts = [shorten(item, depth - 1) for item in value]
        opening, closing = _CONTAINERS[kind]
        text = opening + ", ".join(parts) + ("," if kind is tuple and len(parts) == 1 else "") + closing
    elif kind in _PLAIN or (kind.__name__ in _PATHS and kind.__module__.partition(".")[0] == "pathlib"):
        if kind in (str, bytes) and len(value) > _SHORT:
            value = value[:_SHORT] + ("..." if kind is str else b"...")
        text = repr(value)
    elif kind is int:
        text = repr(value) if value.bit_length() < _SHORT * 4 else f"<int of {value.bit_length()} bits>"
    elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
        text = f"<ndarray {value.shape} {value.dtype}>"
    else:
        text = f"<{kind.__qualname__}>"
    return text if len(text) <= 2 * _SHORT else f"{text[: 2 * _SHORT - 3]}..."


def describe_item(task: Task, item: int) -> str:
    """What ran, for messages: `task 41 resize('a.png')`."""
    return describe_call(task.id, task.policy, task.function, task.sink.arguments(task, item))


def describe_call(
    number: int, policy: Policy | None, function: Function, arguments: tuple[tuple[Any, ...], dict[str, Any]] | None
) -> str:
    """The same of a task that is no more; of arguments that were long, and so not kept: `task 41 resize(...)`."""
    if arguments is None:
        shown = ["..."]
    else:
        args, kwargs = arguments
        shown = [shorten(value) for value in args] + [f"{name}={shorten(value)}" for name, value in kwargs.items()]
    name = f"{policy.name!r} " if policy is not None and policy.name else ""
    return f"task {number} {name}{function.name}({', '.join(shown)})"


def death_error(who: str, what: str, certificate: Certificate | None, failed: Failed) -> BaseException:
    """The error of an item whose worker died, or was killed because the item ran longer than its timeout."""
    who = f"{who} (pid {'?' if certificate is None else certificate.pid})"
    policy = failed.task.policy
    if failed.timeout and policy is not None:
        seconds = policy.timeout_ns / 1e9
        return errors.TaskTimeout(f"{what} ran longer than its timeout of {seconds:g} s; {who} was killed and replaced")
    how = "died" if certificate is None else certificate.describe()
    if policy is not None and policy.memory_bytes:
        how += f" (its memory limit was {policy.memory_bytes} bytes)"
    if len(failed.deaths) > 1:
        times = len(failed.deaths)
        return errors.PoisonTask(
            f"{what} has killed {times} workers, the last one {who}: {how}; their certificates are in .certificates",
            failed.deaths,
        )
    return errors.WorkerDied(f"{who} died: {how} while running {what}; its certificate is in .certificate", certificate)
