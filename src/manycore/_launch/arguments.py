"""What callers give, checked at the call: what is wrong is said there, with the argument's name."""

from __future__ import annotations

TYPE_CHECKING = False  # imports little: `Process` objects are made everywhere
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["integer", "module_names", "seconds", "text"]


def seconds(what: str, value: Any) -> float:
    """A finite number of seconds, 0 or more.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative, infinite or no number of its kind.
    """
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number of seconds, not {value!r}")
    number = float(value)
    if not 0 <= number < float("inf"):  # nor is NaN
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


def text(what: str, value: Any) -> str:
    """A str.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}")
    return value


def module_names(what: str, value: Iterable[str]) -> tuple[str, ...]:
    """Names of modules.

    Raises:
        TypeError: They are none. One str alone would be taken for the names that its letters are.
    """
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(f"{what} must be names of modules, such as ['numpy'], not {value!r}")
    return tuple(text(f"a name in {what}", name) for name in value)
