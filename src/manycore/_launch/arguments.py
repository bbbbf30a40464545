"""Numbers that callers give, checked at the call: what is wrong is said there, with the argument's name."""

from __future__ import annotations

import math

TYPE_CHECKING = False  # imports little: `Process` objects are made everywhere
if TYPE_CHECKING:
    from typing import Any

__all__ = ["integer", "seconds"]


def seconds(what: str, value: Any) -> float:
    """A finite number of seconds, 0 or more.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite or no number of its kind.
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number of seconds, not {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{what} must be a finite number of seconds, 0 or more, not {value!r}")
    return number


def integer(what: str, value: Any, *, least: int | None = None) -> int:
    """An int, `least` or more.

    Raises:
        TypeError: It is no int.
        ValueError: It is less than `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, not {value!r}")
    number = int(value.__index__())
    if least is not None and number < least:
        raise ValueError(f"{what} must be at least {least}, not {number}")
    return number
