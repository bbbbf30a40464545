from collections.abc import Callable
from typing import Any
from weakref import ReferenceType

from typing_extensions import Buffer

PACKED_MARK: int

class Unchanged:
    def __init__(
        self,
        code: ReferenceType[Any],
        home: ReferenceType[Any],
        defaults: tuple[Any, ...] | None,
        variables: list[Any],
        only: ReferenceType[Any] | None,
        more: Callable[[], bool] | None,
    ) -> None: ...
    def __call__(self, function: Any) -> bool: ...

def fingerprint(data: Buffer) -> int: ...
def is_plain(value: object) -> bool: ...
def type_version(cls: type) -> int: ...
def pack(value: object, arrays_only: bool = False) -> bytes | None: ...
def unpack(data: Buffer, start: int = 0) -> Any: ...
