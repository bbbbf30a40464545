"""Whether a large value is what it was: what tells that a function which reads it need not be sent again.

    pickled, arrays left where they are  -> a hash of the pickle, a fingerprint of each array
    the same number later: unchanged

So looking costs about what reading the value costs, and no copy is made. It is looked at before each call that reads
it, for anybody may have changed it in place; who calls often is told, once, what would be cheaper.

If a process dies: nothing is shared.
"""

from __future__ import annotations

import sys
import time

from manycore._native.codec import fingerprint

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Content"]

_TELL_SECONDS = 1.0  # so much time was spent on looking, in vain


class Content:
    """What a value held when it was looked at.

    Args:
        name: The global that it is.
        value: The value.
        pickle: Pickles it, with the memory of arrays in the list that it is given.
    """

    __slots__ = ("_name", "_number", "_pickle", "_seconds", "_value")

    def __init__(self, name: str, value: Any, pickle: Callable[[Any, list[Any]], bytes]) -> None:
        self._name = name
        self._value = value
        self._pickle = pickle
        self._seconds = 0.0
        self._number = self._look()

    def _look(self) -> int:
        buffers: list[Any] = []
        data = self._pickle(self._value, buffers)
        return hash((data, *map(fingerprint, buffers)))

    def is_of(self, value: Any) -> bool:
        """Whether this is the value, and it holds the same."""
        if value is not self._value:
            return False
        since = time.monotonic()
        try:
            if self._look() != self._number:
                return False
        except Exception:  # it can no longer be pickled: whoever pickles it next says why
            return False
        before = self._seconds
        self._seconds += time.monotonic() - since
        if before < _TELL_SECONDS <= self._seconds:
            self._tell()
        return True

    def _tell(self) -> None:
        import warnings

        from manycore.errors import ManycoreWarning

        text = (
            f"the global {self._name!r} is looked at before each call that reads it, in case it has changed: "
            f"{self._seconds:.1f} s so far. manycore.share() what stays as it is, or make one map of many calls"
        )
        level = 1  # of whoever called us
        while str(sys._getframe(level).f_globals.get("__name__", "")).startswith("manycore."):
            level += 1
        warnings.warn(text, ManycoreWarning, stacklevel=level + 1)
