"""Which part of a value cannot be pickled: a search that runs only after a failure, and is bounded.

Pickle's own message names a type ("cannot pickle '_thread.lock' object") and not where it sits. The
search walks down from the failing value: of its parts, the first that fails on its own is entered,
until no part of it fails. Each step pickles the parts anew, hence the bounds.
"""

from __future__ import annotations

import io
import time
import types
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

_SECONDS = 1.0  # of search at most; what was found by then is named
_DEPTH = 50
_PARTS = 10_000  # of one container, looked at
_OWN_IDEAS = ("__reduce_ex__", "__reduce__", "__getstate__")
_HINTS: tuple[tuple[type, str], ...] = (
    (types.CoroutineType, "; an async function makes one: take a function that calls asyncio.run on it"),
    (types.GeneratorType, "; make a list of it"),
    (io.IOBase, "; send its path, and open it there"),
)
_SHARED = ("synchronize", "queues", "sharedctypes")  # of multiprocessing: what reaches the children that it starts


def find_culprit(
    value: Any, error: Exception, fails: Callable[[Any], Exception | None], roots: Sequence[str] = ()
) -> tuple[str, str]:
    """Finds the innermost part of `value` that fails.

    Args:
        value: What could not be pickled.
        error: How it failed.
        fails: Pickles a part; returns its error, or None.
        roots: Names for the first parts of the tuple or list `value`; one name alone names `value` itself.

    Returns:
        The path ("args[0].connection.socket") and the reason.
    """
    deadline = time.monotonic() + _SECONDS
    path = roots[0] if len(roots) == 1 else ""
    named = list(roots) if len(roots) > 1 else []
    seen = {id(value)}
    for _ in range(_DEPTH):
        for step, part in islice(_parts(value), _PARTS):
            if time.monotonic() > deadline:
                return path, _reason(error, value)
            if id(part) in seen or isinstance(part, (int, float, str, bytes, type(None))):
                continue
            failure = fails(part)
            if failure is not None:
                seen.add(id(part))
                if named and isinstance(value, (tuple, list)):
                    step = named[int(step[1:-1])] if int(step[1:-1]) < len(named) else step  # noqa: PLW2901
                path += step if path or not step.startswith(".") else step[1:]
                value, error = part, failure
                named = []
                break
        else:
            break
    return path, _reason(error, value)


def _reason(error: Exception, value: Any) -> str:
    text = str(error)
    reason = text if type(error) in (TypeError, AttributeError) and text else f"{type(error).__name__}: {text}"
    package, _, module = type(value).__module__.partition(".")
    if package == "multiprocessing" and module in _SHARED:
        reason += "; manycore's go to any process"
    return reason + next((hint for kind, hint in _HINTS if isinstance(value, kind)), "")


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a value with the step that leads to each, as one would write it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"[{_short(key)}]", part
            yield f"key {_short(key)}", key
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif isinstance(value, (set, frozenset)):
        for part in value:
            yield f"{{{_short(part)}}}", part
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _function_parts(value)
    elif isinstance(value, type):
        for name, part in list(vars(value).items()):
            if not isinstance(part, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                yield f".{name}", part
    elif not isinstance(value, types.ModuleType):
        yield from _attributes(value)


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" closes over {name}", cell.cell_contents
        except ValueError:
            continue
    for index, part in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", part
    for name, part in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", part
    for name, part in function.__dict__.items():
        yield f".{name}", part


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Attributes as pickle sees them: of the state where the value has its own idea of that."""
    for name in ("func", "args", "keywords"):  # functools.partial
        if hasattr(type(value), name) and hasattr(type(value), "__setstate__"):
            yield f".{name}", getattr(value, name)
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:
        kind: Any = type(value)
        if any(getattr(kind, name) is not getattr(object, name) for name in _OWN_IDEAS):
            return  # it refuses by itself, and says why
        reduced = None
    if isinstance(reduced, tuple) and len(reduced) > 2:
        state = reduced[2]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
            for name, part in state[1].items():
                yield f".{name}", part
            state = state[0]
        if isinstance(state, dict):
            for name, part in state.items():
                yield f".{name}", part
        for index, part in enumerate(islice(reduced[3], _PARTS) if len(reduced) > 3 and reduced[3] else ()):
            yield f"[{index}]", part
    elif reduced is None:
        for name, part in list(getattr(value, "__dict__", {}).items()):
            yield f".{name}", part


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
