"""Actors: an object that lives in a process of its own, and answers calls from any process.

      the launcher, and whoever it gives the actor to          the actor's process
      counter.add(1), a future at once      ==> one queue  ==>  counter.add(1), in order of arrival
                                            <== a queue a caller <==

Three queues in shared memory do it: `calls`, to which all callers put; one for results for each calling process
(`_line.py`); and `members`, in which callers leave word of theirs for the launcher. No thread stands in between.

If a process dies:
    the actor: what it had answered is delivered. The call that it was in fails with ActorDied. Where `restart` says
        so, the object is made again, and the calls that were not taken are for it; else they fail, too. Always in
        this order: the dead is dead; its callers are told; its successor starts.
    a caller: nothing.
    the launcher: the actor ends; who waits in another process gets ActorDied.
Unlike a manager's proxy: calls return futures, arguments and results go through shared memory, nothing is looked up by
    name but the method, and code of `__main__` goes along.
Source: Hewitt, Bishop and Steiger, "A universal modular actor formalism"; the restarts are Erlang/OTP's.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, Self

from manycore import _launch
from manycore._engine import identity
from manycore._engine.failure import load_failure
from manycore._launch.flag import Flag
from manycore._line import ActorFuture, Line
from manycore._memory import codec
from manycore._stage import DIED, NOTICE, OVER, Member, Records, open_records
from manycore.errors import ActorClosed, ActorDied, RemoteTraceback
from manycore.queues import Empty

__all__ = ["Actor"]

Restart = Literal["never", "on-failure", "always"]

# How long `terminate`, and an `Actor` whose object could not be made, wait for a killed process to be gone.
_GONE_SECONDS: Final = 5.0

# This process's lines, by the device and inode of the actor's queue. Emptied in a forked child.
_lines: weakref.WeakValueDictionary[tuple[int, int], Line] = weakref.WeakValueDictionary()
_lines_lock = threading.Lock()


class _Keeper:
    """The launcher's side: starts the process, tells callers of its death, starts it again.

    Attributes:
        over: Set once there is and will be no process, and everybody was told.
    """

    def __init__(self, line: Line, setup: dict[str, Any], restart: Restart, max_restarts: int, within: float) -> None:
        self.line = line
        self.pid = os.getpid()
        self._setup = setup
        self._restart = restart
        self._max_restarts = max_restarts
        self._within = within
        self._restarts: deque[float] = deque()
        self.restarts = 0
        self.closing = False
        self.over = Flag()
        self._known: dict[int, tuple[Member, Records]] = {}  # callers in other processes
        self._lock = threading.Lock()  # guards `closing` against a restart
        self.child: _launch.Child
        self._start()

    def _start(self) -> None:
        members = [member for member, _ in self._known.values()]
        self.child = _launch.launch(
            "manycore._stage:main",
            pickle.dumps({**self._setup, "parent": self.line.member(), "members": members}, 5),
            [self.line.calls._fd, self.line.replies._fd],
            title=f"manycore: actor {self.line.name}",
            on_exit=self._on_exit,
        )

    def _on_exit(self, child: _launch.Child) -> None:
        """In the reaper's thread, which is not to wait for a queue's lock."""
        threading.Thread(target=self._bury, args=(child,), name="manycore actor's death", daemon=True).start()

    def _bury(self, child: _launch.Child) -> None:
        certificate = child.status
        how = certificate.describe() if certificate is not None else "died"
        name = f"actor {self.line.name} (pid {child.pid if child.started else 0})"
        reason: tuple[Any, ...] = (ActorDied, f"{name} died: {how}", certificate)
        with self._lock:
            again = not self.closing and self._may_restart(certificate)
            if not again:
                if self.closing:
                    reason = (ActorClosed, f"{name} is closed")
                elif self._restarts:
                    text = f"; it was started again {len(self._restarts)} times within {self._within:g} s"
                    reason = (ActorDied, f"{name} died: {how}{text}", certificate)
                self.closing = True
                self.line.calls.shutdown(immediate=True)
        self._tell((NOTICE, DIED if again else OVER, pickle.dumps(reason, 5)))
        if not again:
            self.over.set()
            return
        with self._lock:
            if not self.closing:
                self.restarts += 1
                self._start()
                return
            self.line.calls.shutdown(immediate=True)
        self._tell((NOTICE, OVER, pickle.dumps((ActorClosed, f"{name} is closed"), 5)))
        self.over.set()

    def _may_restart(self, certificate: Any) -> bool:
        if self._restart == "never" or self.line.ready != b"":  # the object was never made
            return False
        if self._restart == "on-failure" and certificate is not None and certificate.exitcode == 0:
            return False
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - self._within:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_restarts:
            return False
        self._restarts.append(now)
        return True

    def _tell(self, notice: tuple[Any, ...]) -> None:
        """Put a notice behind what the dead has answered, in each caller's queue."""
        try:
            for member in self.line.members.get_many(timeout=0):
                self._known[member[0]] = (member, open_records(member))
        except (Empty, OSError):
            pass
        for number, (member, replies) in list(self._known.items()):
            if os.path.exists(f"/proc/{member[1]}"):
                replies.put(notice)
            else:
                del self._known[number]
        self.line.replies.put(notice)

    def close(self) -> None:
        """No more calls; the process ends when those that are there are answered."""
        if self.pid == os.getpid():
            with self._lock:
                if not self.closing:
                    self.closing = True
                    self.line.calls.shutdown()

    def kill(self) -> None:
        """End the process now."""
        with self._lock:
            self.closing = True
            child = self.child
        child.kill()


class Actor:
    """An object in a process of its own. Its methods are called as if it were here, and return futures.

        counter = manycore.Actor(Counter, 0)
        counter.add(5).result()

    Calls of one thread are performed in order, one at a time; `async def` methods run in an event loop over there, so
    that others go on where they await. An actor may be sent to other processes, whose calls it takes too. Names that
    `Actor` has itself, and names that begin with `_`, are reached by `call`.

    Args:
        kind: What makes the object: a class, or any callable.
        args: For it.
        restart: When the object is made again after the death of its process: "never", "on-failure" (of anything but
            an exit with code 0), or "always".
        max_restarts: The budget: so many restarts within `within` seconds are borne.
        within: Seconds.
        max_pending: Calls that may wait for the actor; a call more waits for room. 0 is no bound.
        name: For messages and for the process's title; None is the name of `kind`.
        kwargs: For `kind`.

    Raises:
        Exception: What `kind` raised over there.
        ActorDied: The process died before the object was made.
        TaskPicklingError: `kind` or an argument cannot be pickled.

    Process-safety: any thread of any process may use it. **If a process dies:** see the module.
    """

    def __init__(
        self,
        kind: Callable[..., Any],
        /,
        *args: Any,
        restart: Restart = "never",
        max_restarts: int = 3,
        within: float = 5.0,
        max_pending: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        if restart not in ("never", "on-failure", "always"):
            raise ValueError(f"restart must be 'never', 'on-failure' or 'always', not {restart!r}")
        if not callable(kind):
            raise TypeError(f"an actor is made by a callable, not by {kind!r}")
        title: str = str(name or getattr(kind, "__name__", type(kind).__name__))
        line = Line(Records(max_pending), Records(), 0, title)
        setup = {
            "main": codec.describe_main(),
            "name": title,
            "identity": identity.of_workers(),
            "kind": codec.dump_function(kind),
            "arguments": codec.dumps((args, kwargs), roots=("args", "kwargs")),
        }
        self._lines: Line | _Unmade = line
        _lines[line.calls._inode] = line
        self._handle: tuple[Records, Records, int, str] = (line.calls, line.members, os.getpid(), title)
        keeper = _Keeper(line, setup, restart, max_restarts, within)
        self._keeper: _Keeper | None = keeper
        self._finalizer = weakref.finalize(self, keeper.close)
        try:
            line.await_ready()
            if line.ready:
                error, what, text = load_failure(line.ready)
                raise (error or ActorDied(f"{title} could not be made: {what}")) from RemoteTraceback(text)
        except BaseException:
            self.terminate()
            raise

    def __getattr__(self, name: str) -> Callable[..., ActorFuture]:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def call(*args: Any, **kwargs: Any) -> ActorFuture:
            return self._line().call(name, args, kwargs)

        return call  # not kept here: it refers to this object, which is to go when it is forgotten

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> ActorFuture:
        """Call a method of the object by its name; a future of what it returns."""
        return self._line().call(method, args, kwargs)

    def attribute(self, name: str) -> ActorFuture:
        """A future of an attribute of the object."""
        return self._line().call("__getattribute__", (name,), {})

    def _line(self) -> Line:
        line = self._lines
        return self._new_line() if isinstance(line, _Unmade) or line.forked else line

    def _new_line(self) -> Line:
        """In a process that has not called yet."""
        calls, members, launcher, title = self._handle
        with _lines_lock:
            line = _lines.get(calls._inode)
            if line is None or line.forked:
                line = _lines[calls._inode] = Line(calls, members, launcher, title)
        self._lines = line
        return line

    # Ending

    def close(self, timeout: float | None = None) -> None:
        """End the actor once the calls that were made are answered, and wait for its end.

        Args:
            timeout: Seconds after which it is killed, and the calls that are left fail; None is never.

        Raises:
            RuntimeError: Another process has launched it.
        """
        keeper = self._owned()
        keeper.close()
        if not keeper.over.wait(timeout):
            keeper.kill()
            keeper.over.wait(_GONE_SECONDS)

    def terminate(self) -> None:
        """End the actor now; calls that are not answered fail with `ActorClosed`."""
        keeper = self._owned()
        keeper.kill()
        keeper.over.wait(_GONE_SECONDS)

    def _owned(self) -> _Keeper:
        keeper = self._keeper
        if keeper is None or keeper.pid != os.getpid():
            raise RuntimeError("an actor is ended by the process that has launched it")
        return keeper

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.terminate()

    # Knowing

    @property
    def pid(self) -> int:
        """The id of the process that it runs in now, or ran in last; for the process that has launched it."""
        return self._owned().child.pid

    @property
    def restarts(self) -> int:
        """How often it was made again; for the process that has launched it."""
        return self._owned().restarts

    def __repr__(self) -> str:
        return f"<manycore.Actor {self._handle[3]}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _attach, self._handle


def _attach(calls: Records, members: Records, launcher: int, title: str) -> Actor:
    actor = Actor.__new__(Actor)
    actor._handle = (calls, members, launcher, title)
    actor._keeper = None
    actor._lines = _Unmade()
    return actor


class _Unmade:
    """Stands for the line of an actor that has come from elsewhere and was not called yet."""


def _after_fork() -> None:
    global _lines_lock
    _lines.clear()
    _lines_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
