import threading
from collections.abc import Callable
from typing import Any

from manycore._engine.backlog import Backlog
from manycore._engine.outbox import Outbox
from manycore._engine.policy import Policy
from manycore._engine.task import Past, TaskState
from manycore._native.ring import ResultRing, TaskRing
from manycore._native.step import Mutex

class Task:
    sink: Any
    function: Any
    payload: Any
    policy: Policy | None
    past: Past | None
    state: TaskState
    id: int
    ticket: int
    count: int
    received: int
    nbytes: int
    chunk: bool
    once: bool
    def __init__(
        self,
        sink: Any,
        function: Any,
        payload: Any,
        *,
        count: int = 1,
        chunk: bool = False,
        policy: Policy | None = None,
        once: bool = False,
        nbytes: int = 0,
    ) -> None: ...

class Call:
    _state: str
    _result: Any
    _exception: BaseException | None
    _cond: threading.Condition | None
    _waiting: list[Any] | None
    _callbacks: list[Callable[[Any], object]] | None
    _owner: Any
    _task: Task | None
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] | None
    _raw: tuple[int, Any, Any] | None
    _keeper: object
    def __init__(self, owner: Any = None) -> None: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def _share(self, condition: threading.Condition) -> threading.Condition: ...
    def _settle(
        self,
        state: str,
        result: Any,
        exception: BaseException | None,
        raw: tuple[int, Any, Any] | None,
        guarded: bool,
    ) -> bool | None: ...
    def _decoded(self, raw: tuple[int, Any, Any], result: Any, exception: BaseException | None) -> None: ...

class Book:
    _tasks: dict[int, Task]
    _next_id: int
    ranked: int
    _backlog: Backlog

class Line:
    _lock: Mutex
    _closed: bool
    _unmanned: bool
    plain_bytes: int
    def _wire(self, ring: TaskRing, book: Book, outbox: Outbox) -> None: ...
    def pump(self) -> None: ...
    def call(
        self,
        future: Call,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        policy: Policy | None = None,
    ) -> None: ...

def settle(book: Book, ring: ResultRing, worker: int, litter: list[Any]) -> tuple[int, int]: ...
