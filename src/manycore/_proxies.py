"""Proxies of objects in a manager's process.

A proxy's call goes over a connection of its thread's own. The methods of the standard types' proxies are the standard
library's; how a call is made is here.

Invariants:
    each proxy holds a reference in the server, which its finalizer gives back, unless it is the server's own
If a process dies: as `manycore.managers` says.
"""

from __future__ import annotations

import multiprocessing.managers as _standard
import threading
from collections.abc import Callable, Iterable
from multiprocessing import process as _process
from multiprocessing import util
from multiprocessing.context import get_spawning_popen
from multiprocessing.managers import State, convert_to_error  # type: ignore[attr-defined]
from typing import Any

from manycore._server import ask, dispatch, exchange, listener_client, open_link, tell
from manycore.connection import AUTH_TIMEOUT

__all__ = [
    "AcquirerProxy",
    "ArrayProxy",
    "AutoProxy",
    "BarrierProxy",
    "BaseListProxy",
    "BasePoolProxy",
    "BaseProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "MakeProxyType",
    "NamespaceProxy",
    "PoolProxy",
    "RebuildProxy",
    "ValueProxy",
]


class BaseProxy(_standard.BaseProxy):
    """What uses an object in a manager's process. Any thread may use it; it may be sent to other processes.

    Args:
        token: Which object.
        serializer: The server's.
        manager: The manager, where this process has it.
        authkey: The key; None is the manager's, else the current process's.
        exposed: Taken for the standard signature.
        incref: Tell the server that there is one more proxy.
        manager_owned: The proxy is in the server itself.

    **If a process dies:** see the module.
    """

    def __init__(
        self,
        token: Any,
        serializer: str,
        manager: Any = None,
        authkey: bytes | None = None,
        exposed: Any = None,
        incref: bool = True,
        manager_owned: bool = False,
    ) -> None:
        super().__init__(token, serializer, manager, authkey, exposed, False, manager_owned)
        self._Client = listener_client[serializer][1]
        if incref:
            self._incref()

    def _connect(self) -> Any:
        name = _process.current_process().name
        if threading.current_thread() is not threading.main_thread():
            name += f"|{threading.current_thread().name}"
        link = open_link(self._Client, self._token.address, self._authkey)  # type: ignore[attr-defined]
        dispatch(link, None, "accept_connection", (name,))
        self._tls.connection = link  # type: ignore[attr-defined]
        return link

    def _callmethod(self, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006  (never written)
        """Call a method of the object.

        Returns:
            A copy of its result, or a proxy for it.

        Raises:
            ManagerDied: The manager is gone.
            Exception: What the method raised.
        """
        tls = self._tls  # type: ignore[attr-defined]
        link = getattr(tls, "connection", None)
        if link is None or _is_closed(link):
            link = self._connect()
        kind, result = exchange(link, (self._id, methodname, args, kwds))  # type: ignore[attr-defined]
        if kind == "#RETURN":
            return result
        if kind == "#PROXY":
            return self._proxy(*result)
        try:
            raise convert_to_error(kind, result)
        finally:
            del result  # the traceback refers to this frame

    def _proxy(self, exposed: Any, token: Any) -> Any:
        manager: Any = self._manager
        registry = {} if manager is None else manager._registry
        kind = registry[token.typeid][-1] if token.typeid in registry else _RESULTS.get(token.typeid, AutoProxy)
        token.address = self._token.address  # type: ignore[attr-defined]
        key = self._authkey  # type: ignore[attr-defined]
        proxy = kind(token, self._serializer, manager=manager, authkey=key, exposed=exposed)  # type: ignore[attr-defined]
        ask(self._Client, token.address, key, "decref", token.id)
        return proxy

    def _incref(self) -> None:
        if self._owned_by_manager:  # type: ignore[attr-defined]
            return
        token, key = self._token, self._authkey  # type: ignore[attr-defined]
        ask(self._Client, token.address, key, "incref", token.id)
        self._idset.add(token.id)  # type: ignore[attr-defined]
        manager: Any = self._manager
        state = manager and manager._state
        self._close = util.Finalize(
            self,
            BaseProxy._decref,
            args=(token, key, state, self._tls, self._idset, self._Client),  # type: ignore[attr-defined]
            exitpriority=10,
        )

    @staticmethod
    def _decref(token: Any, authkey: bytes, state: Any, tls: Any, idset: Any, _Client: Any) -> None:  # noqa: N803
        """A finalizer: tell the server that this proxy is gone; where it does not answer, never mind."""
        idset.discard(token.id)
        if state is None or state.value == State.STARTED:
            tell(_Client, token.address, authkey, AUTH_TIMEOUT, "decref", token.id)
        if not idset and hasattr(tls, "connection"):
            tls.connection.close()
            del tls.connection

    def _after_fork(self) -> None:
        self._manager = None
        try:
            self._incref()
        except Exception as error:
            util.info("incref failed: %s", error)

    def __reduce__(self) -> tuple[Any, ...]:
        kwds: dict[str, Any] = {"authkey": self._authkey} if get_spawning_popen() is not None else {}  # type: ignore[attr-defined]
        kind: Any = type(self)
        if getattr(self, "_isauto", False):
            kwds["exposed"] = self._exposed_  # type: ignore[attr-defined]
            kind = AutoProxy
        return RebuildProxy, (kind, self._token, self._serializer, kwds)  # type: ignore[attr-defined]


def _is_closed(link: Any) -> bool:
    closed: bool = getattr(link, "_conn", link).closed
    return closed


def RebuildProxy(func: Any, token: Any, serializer: str, kwds: dict[str, Any]) -> Any:  # noqa: N802
    """What a pickled proxy becomes; in the server itself, one that owns no reference."""
    return _standard.RebuildProxy(func, token, serializer, kwds)  # type: ignore[attr-defined]


def MakeProxyType(name: str, exposed: Iterable[str], _cache: Any = {}) -> Any:  # noqa: B006, N802  (shared on purpose)
    """A class of proxies with these methods."""
    exposed = tuple(exposed)
    kind = _cache.get((name, exposed))
    if kind is None:
        methods: dict[str, Any] = {method: _caller(method) for method in exposed}
        kind = type(name, (BaseProxy,), {**methods, "_exposed_": exposed, "__module__": __name__})
        _cache[name, exposed] = kind
    return kind


def _caller(method: str) -> Callable[..., Any]:
    def call(self: Any, /, *args: Any, **kwds: Any) -> Any:
        return self._callmethod(method, args, kwds)

    call.__name__ = call.__qualname__ = method
    return call


def AutoProxy(  # noqa: N802
    token: Any,
    serializer: str,
    manager: Any = None,
    authkey: bytes | None = None,
    exposed: Any = None,
    incref: bool = True,
    manager_owned: bool = False,
) -> Any:
    """A proxy of a class that is made of what the object exposes. The arguments are those of `BaseProxy`."""
    key = authkey or (manager is not None and manager._authkey) or _process.current_process().authkey
    if exposed is None:
        exposed = ask(listener_client[serializer][1], token.address, key, "get_methods", token)
    kind = MakeProxyType(f"AutoProxy[{token.typeid}]", exposed)
    proxy = kind(token, serializer, manager=manager, authkey=key, incref=incref, manager_owned=manager_owned)
    proxy._isauto = True
    return proxy


# The types of proxies: the standard library's methods, over our `_callmethod`.


class IteratorProxy(BaseProxy, _standard.IteratorProxy):  # type: ignore[name-defined, misc]
    """A proxy of an iterator or generator."""


class AcquirerProxy(BaseProxy, _standard.AcquirerProxy):  # type: ignore[name-defined, misc]
    """A proxy of a lock or semaphore."""


class ConditionProxy(AcquirerProxy, _standard.ConditionProxy):  # type: ignore[name-defined, misc]
    """A proxy of a condition."""


class EventProxy(BaseProxy, _standard.EventProxy):  # type: ignore[name-defined, misc]
    """A proxy of an event."""


class BarrierProxy(BaseProxy, _standard.BarrierProxy):  # type: ignore[name-defined, misc]
    """A proxy of a barrier."""


class NamespaceProxy(BaseProxy, _standard.NamespaceProxy):  # type: ignore[name-defined, misc]
    """A proxy of a namespace: its attributes are the namespace's, but for those that begin with `_`."""


class ValueProxy(BaseProxy, _standard.ValueProxy):  # type: ignore[type-arg]
    """A proxy of a value: `get`, `set`, `value`."""


class BaseListProxy(BaseProxy, _standard.BaseListProxy):  # type: ignore[type-arg]
    """A proxy of a list, without the operators that assign."""


class ListProxy(BaseListProxy, _standard.ListProxy):  # type: ignore[type-arg]
    """A proxy of a list."""


class DictProxy(BaseProxy, _standard.DictProxy):  # type: ignore[type-arg]
    """A proxy of a dict."""


class ArrayProxy(BaseProxy, _standard.ArrayProxy):  # type: ignore[name-defined, misc]
    """A proxy of an `array.array`."""


class BasePoolProxy(BaseProxy, _standard.BasePoolProxy):  # type: ignore[name-defined, misc]
    """A proxy of a pool, without the context manager."""


class PoolProxy(BasePoolProxy, _standard.PoolProxy):  # type: ignore[name-defined, misc]
    """A proxy of a pool."""


# Proxies of what methods of proxies give, for a process that has a proxy without its manager.
_RESULTS: dict[str, Any] = {"Iterator": IteratorProxy}
