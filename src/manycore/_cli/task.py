"""The worker's side of `manycore map`: call the user's function, and make the JSON text of its result.

    parent                       worker
    item ==> Task.__call__ ...... function(item) -> encode -> Done(text, cpu_seconds)
         <== Done.pack(): bytes, since a pool sends short ones without pickling
    `{"index": N, ` + Done.text is the line that the parent writes

The worker encodes, so that encoding is as parallel as the work is, and the parent only moves bytes. Nothing that
takes long to import is imported here: this is on the way of a worker's first result.

What JSON holds, beyond its own types:
    dataclass instances, as objects      paths, UUIDs, Decimals and Fractions, as strings
    sets, sorted where that can be       dates and times, in ISO form; a timedelta in seconds
    enum members, as their values        NumPy arrays and scalars, as lists and numbers
What it does not hold: NaN and the infinities (they are not JSON), bytes, and any other object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType, ModuleType, TracebackType

__all__ = [
    "HEAD",
    "BadItem",
    "Done",
    "Target",
    "Task",
    "TaskFailed",
    "encode",
    "load_module",
    "own_frames",
    "parse",
    "settle",
]

HEAD = Struct("<d?")  # of a packed `Done`: cpu_seconds, and whether the rest is its text
_DEEPEST = 200  # levels that the search for what JSON cannot hold goes down


class Target(NamedTuple):
    """A function, by name: its module, its dotted attributes, and the module's file where it has to be told."""

    module: str
    attributes: str
    path: str | None


class BadItem(NamedTuple):
    """An item that could not be read; it travels in an item's place, and fails there.

    Attributes:
        text: What stood there.
        reason: What is wrong with it.
    """

    text: str
    reason: str


class Done(NamedTuple):
    """What a worker gives back.

    Attributes:
        text: The JSON line from `"item"` on; None where there is no result to write.
        cpu_seconds: The processor time that the worker took.
        kind: Why there is no result: the name of an error; empty where there is one.
        reason: The error's text.
    """

    text: bytes | None
    cpu_seconds: float
    kind: str = ""
    reason: str = ""

    def pack(self) -> bytes:
        """As bytes: the seconds, whether there is a text, and the text, or why there is none."""
        if self.text is not None:
            return HEAD.pack(self.cpu_seconds, True) + self.text
        return HEAD.pack(self.cpu_seconds, False) + f"{self.kind}\n{self.reason}".encode("utf-8", "surrogatepass")

    @classmethod
    def unpack(cls, data: bytes) -> Done:
        """What `pack` made bytes of."""
        cpu_seconds, has_text = HEAD.unpack_from(data)
        rest = data[HEAD.size :]
        if has_text:
            return cls(rest, cpu_seconds)
        kind, _, reason = rest.decode("utf-8", "surrogatepass").partition("\n")
        return cls(None, cpu_seconds, kind, reason)


class TaskFailed(Exception):
    """Why a task has no result, as text: whatever the function raised, this can be sent to the parent.

    Attributes:
        kind: The name of the error's class.
        reason: Its text.
        traceback: Its traceback from the user's code on.
    """

    def __init__(self, kind: str, reason: str, traceback: str) -> None:
        super().__init__(kind, reason, traceback)
        self.kind = kind
        self.reason = reason
        self.traceback = traceback

    @classmethod
    def from_error(cls, error: BaseException) -> TaskFailed:
        """Put an error into words."""
        from traceback import TracebackException

        described = TracebackException(type(error), error, own_frames(error.__traceback__))
        try:
            reason = str(error)
        except Exception:
            reason = "(its text cannot be had)"
        return cls(type(error).__name__, reason, "".join(described.format()).rstrip())


def own_frames(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the user's code: what brought us there is ours and importlib's."""
    while trace is not None and _is_machinery(trace.tb_frame):
        trace = trace.tb_next
    return trace


def _is_machinery(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in {"manycore", "importlib"} or frame.f_code.co_filename.startswith(
        "<frozen importlib"
    )


def load_module(target: Target) -> ModuleType:
    """Import the module of a target; from its file where it cannot be imported by name."""
    if target.path is None:
        return import_module(target.module)
    loaded = sys.modules.get(target.module)
    if loaded is not None:
        return loaded
    spec = spec_from_file_location(target.module, target.path)
    if spec is None or spec.loader is None:  # a file without the suffix of a source file
        from importlib.machinery import SourceFileLoader

        spec = spec_from_file_location(target.module, target.path, loader=SourceFileLoader(target.module, target.path))
        assert spec is not None  # noqa: S101  (a loader was given)
        assert spec.loader is not None  # noqa: S101
    module = module_from_spec(spec)
    sys.modules[target.module] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[target.module]
        raise
    return module


class Task:
    """The user's function as a worker calls it: one item in, one line out.

    Args:
        target: The function.
        is_json: Whether an item is the text of a JSON value, to be parsed before the call.
    """

    def __init__(self, target: Target, *, is_json: bool) -> None:
        self._target = target
        self._is_json = is_json
        self._function: Callable[[Any], object] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _task, (self._target, self._is_json)

    def __call__(self, item: Any) -> bytes:
        """Run the function on one item; give back a packed `Done`.

        What is wrong with the item itself or with the result's JSON comes back in `Done`, and only what the function
        raises is raised: that alone is tried again where retries were asked for.

        Raises:
            TaskFailed: The function raised, or could not be imported here.
        """
        before = time.process_time()
        if type(item) is BadItem:
            return Done(None, 0.0, "InputError", item.reason).pack()
        if self._is_json:
            try:
                value = parse(item)
            except (ValueError, RecursionError) as error:
                return Done(None, time.process_time() - before, "InputError", f"not JSON: {_brief(error)}").pack()
            shown = item
        else:
            value = item
            shown = encode(item)
        try:
            function = self._function
            if function is None:
                function = self._function = self._load()
            result = function(value)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: it is the task that ends
            raise TaskFailed.from_error(error) from None
        try:
            text = f'"item": {shown}, "result": {encode(result)}}}\n'
        except (TypeError, ValueError, RecursionError) as error:
            found = find_unencodable(result)
            reason = found or f"JSON cannot hold the result: {error}"
            return Done(None, time.process_time() - before, "NotJSON", reason).pack()
        try:
            line = text.encode()
        except UnicodeEncodeError:  # a lone surrogate, as in a file's name that is not UTF-8
            escaped = item if self._is_json else _ENCODE_ASCII(item)
            line = f'"item": {escaped}, "result": {_ENCODE_ASCII(result)}}}\n'.encode()
        return Done(line, time.process_time() - before).pack()

    def _load(self) -> Callable[[Any], object]:
        function: Any = load_module(self._target)
        for name in self._target.attributes.split("."):
            function = getattr(function, name)
        return function  # type: ignore[no-any-return]  # resolve() made sure in the parent


_TASKS: dict[tuple[Target, bool], Task] = {}


def _task(target: Target, is_json: bool) -> Task:
    """The task of this process for a target; one, so that its function is found once."""
    key = (target, is_json)
    if key not in _TASKS:
        _TASKS[key] = Task(target, is_json=is_json)
    return _TASKS[key]


def settle() -> None:
    """Prepare a worker: what its tasks read must not take the input, and what they print comes in whole lines."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a line is one write, with PYTHONUNBUFFERED too: lines of two workers do not mix
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


parse = json.JSONDecoder(parse_constant=_reject_constant).decode


def _brief(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _convert(value: Any) -> object:
    """Give the JSON form of what the encoder does not know; raise TypeError where there is none."""
    if hasattr(type(value), "__dataclass_fields__"):
        return {name: getattr(value, name) for name in type(value).__dataclass_fields__}
    if isinstance(value, (set, frozenset)):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    # A value of a type can only be here if its module has been imported: look there, and import nothing.
    for module, names, convert in _CONVERSIONS:
        loaded = sys.modules.get(module)
        if loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names)):
            return convert(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


_CONVERSIONS: tuple[tuple[str, tuple[str, ...], Callable[[Any], object]], ...] = (
    ("numpy", ("ndarray", "generic"), lambda value: value.tolist()),
    ("enum", ("Enum",), lambda value: value.value),
    ("datetime", ("date", "time"), lambda value: value.isoformat()),  # a datetime is a date
    ("datetime", ("timedelta",), lambda value: value.total_seconds()),
    ("decimal", ("Decimal",), str),
    ("fractions", ("Fraction",), str),
    ("uuid", ("UUID",), str),
)

encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_convert).encode
_ENCODE_ASCII = json.JSONEncoder(allow_nan=False, default=_convert).encode


def find_unencodable(value: object) -> str:
    """Name the first thing in `value` that JSON cannot hold, and where it is; empty if none was found."""
    return next(_search(value, "the result", frozenset(), 0), "")


def _search(value: Any, place: str, above: frozenset[int], depth: int) -> Iterator[str]:
    if value is None or isinstance(value, (str, bool, int)):
        return
    if isinstance(value, float):
        if value != value or value in {float("inf"), float("-inf")}:  # noqa: PLR0124  (that is what NaN is)
            yield f"{place} is {value}, which JSON cannot hold"
        return
    if id(value) in above or depth > _DEEPEST:
        yield f"{place} contains itself, or is nested too deeply for JSON"
        return
    above |= {id(value)}
    if isinstance(value, dict):
        for key, entry in value.items():
            if not (key is None or isinstance(key, (str, bool, int, float))):
                yield f"{place} has a key of type {type(key).__name__}; keys of JSON objects are strings"
            yield from _search(entry, f"{place}[{_short(key)}]", above, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _search(entry, f"{place}[{index}]", above, depth + 1)
    else:
        try:
            converted = _convert(value)
        except TypeError:
            hint = "; return text, such as value.hex()" if isinstance(value, (bytes, bytearray, memoryview)) else ""
            yield f"{place} is of type {type(value).__name__}, which JSON cannot hold{hint}"
        else:
            yield from _search(converted, place, above, depth + 1)


def _short(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 40 else f"{text[:37]}..."
