"""Exceptions on their way from a worker to the parent.

A failure is the exception's own pickle, where there is one, beside its type and its traceback as text, so
that an exception which cannot be pickled or rebuilt still says what it was. It is rebuilt in the thread that
asks for the result; if that goes wrong, only that result is concerned. Lines of a source that only the parent has (a
notebook's cell, a prompt) are added there.
"""

from __future__ import annotations

from _pickle import dumps as _dumps_plain
from _pickle import loads as _loads_plain

from manycore._memory import codec

__all__ = ["dump_failure", "load_failure"]

_WITHOUT_SOURCE = r'(?m)^( *)File "(.+)", line (\d+), in .+\n(?!\1  )'


def dump_failure(error: BaseException, skip: int = 1, *, to_parent: bool = True) -> bytes:
    """In the worker: everything that the parent can be told of an exception.

    Args:
        error: What was raised.
        skip: How many of the traceback's outermost frames are the worker's own.
        to_parent: As for `codec.dumps`.
    """
    frames = error.__traceback__
    for _ in range(skip):
        if frames is not None:
            frames = frames.tb_next
    try:
        import traceback  # half of what a worker would import, most of which never fail

        text = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException as broken:
        # the likeliest reason is that there is no descriptor left to read a source file by; other texts may be code
        what = f": {error}" if type(error).__str__ is OSError.__str__ else ""
        text = f"{type(error).__name__}{what} (its traceback could not be formatted: {type(broken).__name__})\n"
    pickled: bytes | None
    try:
        pickled = codec.dumps(error, to_parent=to_parent)
    except BaseException as broken:
        pickled = None
        text += f"\n(the exception itself could not be pickled: {type(broken).__name__}: {broken})\n"
    return _dumps_plain((f"{type(error).__module__}.{type(error).__qualname__}", text, pickled), 5)


def load_failure(data: bytes) -> tuple[BaseException | None, str, str]:
    """In the parent: (the exception or None, the name of its type, the remote text).

    None means that it could not be pickled there or cannot be rebuilt here; the text then says why.
    """
    name, text, pickled = _loads_plain(data)
    text = _with_sources(text)
    if pickled is None:
        return None, name, text
    try:
        error = codec.loads(pickled)
    except BaseException as broken:
        return None, name, f"{text}\n(it could not be rebuilt here: {type(broken).__name__}: {broken})\n"
    if not isinstance(error, BaseException):
        return None, name, f"{text}\n(its pickle gave a {type(error).__name__} instead of an exception)\n"
    return error, name, text


def _with_sources(text: str) -> str:
    """A traceback with what stands in the lines that it names."""
    import linecache  # like `re`, nothing that a worker is to import
    import re

    def with_source(place: re.Match[str]) -> str:
        line = linecache.getline(place[2], int(place[3])).strip()
        return f"{place[0]}{place[1]}  {line}\n" if line else place[0]

    return re.sub(_WITHOUT_SOURCE, with_source, text)
