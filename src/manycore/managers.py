"""Managers: a process that holds objects, and proxies by which others use them.

      any process, any thread                          the manager's process
      proxy.append(1): a connection a thread   ==>     a thread a connection: list.append(1)
                                               <==     the result, the exception, or another proxy

The standard interface and protocol: a standard manager's server may be the other side, and a standard client.
What is registered, and the types of the proxies, are the standard library's (`multiprocessing.managers`); how a
server is started, served and reached, and what comes of deaths, is here.

Invariants:
    a thread's connection carries one call at a time, and none after one that was not answered to its end, so that
        no answer is taken for another call's
    a client is unpickled from only after it has shown the key, and it has AUTH_TIMEOUT seconds for that
If a process dies:
    the manager: all calls in it, and all that come, raise ManagerDied, in every process. The objects are gone.
    the process that started it: the manager goes, and the file of its socket, with its folder where we made that.
    a client: its connection's thread ends. What it held by proxies (references, locks) stays held.
Unlike multiprocessing.managers: see above; `shutdown` takes a bounded time even where the manager is stopped; an
    exception that is no Exception (SystemExit) reaches the caller; a server without descriptors waits instead of
    spinning.
"""

from __future__ import annotations

import multiprocessing.managers as _standard
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from multiprocessing import resource_tracker, util
from multiprocessing.context import ProcessError
from multiprocessing.managers import (  # type: ignore[attr-defined]  # names that its stub leaves out
    Array,
    Namespace,
    ProcessLocalSet,
    RemoteError,
    State,
    Token,
    Value,
    all_methods,
    convert_to_error,
    public_methods,
)
from multiprocessing.process import parent_process
from typing import TYPE_CHECKING, Any

from manycore import connection, context, pool, shared_memory
from manycore._launch import folder
from manycore._proxies import (
    AcquirerProxy,
    ArrayProxy,
    AutoProxy,
    BarrierProxy,
    BaseListProxy,
    BasePoolProxy,
    BaseProxy,
    ConditionProxy,
    DictProxy,
    EventProxy,
    IteratorProxy,
    ListProxy,
    MakeProxyType,
    NamespaceProxy,
    PoolProxy,
    RebuildProxy,
    ValueProxy,
)
from manycore._server import Server, SharedMemoryServer, ask, dispatch, listener_client, tell
from manycore.errors import ManagerDied

__all__ = [
    "AcquirerProxy",
    "Array",
    "ArrayProxy",
    "AutoProxy",
    "BarrierProxy",
    "BaseListProxy",
    "BaseManager",
    "BasePoolProxy",
    "BaseProxy",
    "ConditionProxy",
    "DictProxy",
    "EventProxy",
    "IteratorProxy",
    "ListProxy",
    "MakeProxyType",
    "ManagerDied",
    "Namespace",
    "NamespaceProxy",
    "PoolProxy",
    "ProcessLocalSet",
    "RebuildProxy",
    "RemoteError",
    "Server",
    "SharedMemoryManager",
    "SharedMemoryServer",
    "State",
    "SyncManager",
    "Token",
    "Value",
    "ValueProxy",
    "all_methods",
    "convert_to_error",
    "dispatch",
    "listener_client",
    "public_methods",
]


def _close_with_parent(listener: Any) -> None:
    """In the server's process: the file of its socket goes when the parent is killed, whom it outlives a moment."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        listener.close()


class BaseManager(_standard.BaseManager):
    """A manager: a server in a process of its own, or a way to one that runs elsewhere.

    Args:
        address: Where the server listens, or is to; None is anywhere.
        authkey: The key of both sides; None is the current process's.
        serializer: "pickle" or "xmlrpclib".
        ctx: How the process is started: a context; None is the default one.
        shutdown_timeout: Seconds for each step of `shutdown`: to be answered, to end, to end of a SIGTERM.

    **If a process dies:** see the module.
    """

    _registry: dict[str, Any] = {}  # noqa: RUF012  (copied by `register` for each class that registers)
    _Server: type[Server] = Server
    _process: Any = None
    _address: Any

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = "pickle",
        ctx: Any = None,
        *,
        shutdown_timeout: float = 1.0,
    ) -> None:
        chosen = ctx or context.get_context()
        super().__init__(address, authkey, serializer, chosen, shutdown_timeout=shutdown_timeout)
        self._Listener, self._Client = listener_client[serializer]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What `register` has made."""

    def _check_initial(self) -> None:
        if self._state.value != State.INITIAL:
            started = self._state.value == State.STARTED
            raise ProcessError("Already started server" if started else "Manager has shut down")

    def get_server(self) -> Any:
        """The server itself, for a process that is to be one: it has `serve_forever()` and `address`."""
        self._check_initial()
        return self._Server(self._registry, self._address, self._authkey, self._serializer)

    def connect(self) -> None:
        """Use the server that runs at the address.

        Raises:
            ConnectionError, OSError: There is none.
            AuthenticationError: It has another key.
        """
        with closing(self._Client(self._address, authkey=self._authkey)) as link:
            dispatch(link, None, "dummy")
        self._state.value = State.STARTED

    def start(self, initializer: Callable[..., object] | None = None, initargs: Iterable[Any] = ()) -> None:
        """Start the server's process.

        Args:
            initializer: Called in it first.
            initargs: For the initializer.

        Raises:
            ManagerDied: The process ended before it served.
            LaunchError: It could not be started.
        """
        self._check_initial()
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if self._address is None:
            folder.path()  # ours: the server listens in it, and it goes when we do, however both end
        reader, writer = connection.Pipe(duplex=False)
        with reader:
            with writer:
                process = self._ctx.Process(
                    target=type(self)._run_server,
                    args=(
                        self._registry,
                        self._address,
                        self._authkey,
                        self._serializer,
                        writer,
                        initializer,
                        initargs,
                    ),
                )
                process.name = f"{type(self).__name__}-{':'.join(map(str, process._identity))}"
                process.start()
            try:
                if reader not in connection.wait([reader, process.sentinel]):
                    raise EOFError
                self._address = reader.recv()
            except EOFError:
                process.join()
                how = process.certificate.describe() if process.certificate else f"exit code {process.exitcode}"
                raise ManagerDied(f"{process.name} (pid {process.pid}) ended before it served: {how}") from None
        self._process = process
        self._state.value = State.STARTED
        self.shutdown: Any = util.Finalize(
            self,
            type(self)._finalize_manager,
            args=(
                process,
                self._address,
                self._authkey,
                self._state,
                self._Client,
                self._shutdown_timeout,
            ),
            exitpriority=0,
        )

    @classmethod
    def _run_server(
        cls,
        registry: dict[str, Any],
        address: Any,
        authkey: bytes,
        serializer: str,
        writer: Any,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None:
        """In the server's process: create it, tell its address, serve."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the programs that use the objects
        if initializer is not None:
            initializer(*initargs)
        server = cls._Server(registry, address, authkey, serializer)
        threading.Thread(target=_close_with_parent, args=(server.listener,), daemon=True).start()
        writer.send(server.address)
        writer.close()
        server.serve_forever()

    @staticmethod
    def _finalize_manager(
        process: Any, address: Any, authkey: bytes, state: Any, client: Any, shutdown_timeout: float
    ) -> None:
        """`shutdown`: ask, then insist. Bounded, also where the server is stopped or stuck."""
        if process.is_alive():
            tell(client, address, authkey, shutdown_timeout, "shutdown")
            process.join(timeout=shutdown_timeout)
            if process.is_alive():
                process.terminate()
                process.join(timeout=shutdown_timeout)
            if process.is_alive():
                process.kill()
                process.join()
        state.value = State.SHUTDOWN
        BaseProxy._address_to_local.pop(address, None)

    def _create(self, typeid: str, /, *args: Any, **kwds: Any) -> tuple[Token, tuple[str, ...]]:
        """Have an object made; its token, and what of it is exposed."""
        if self._state.value != State.STARTED:
            raise AssertionError("server not yet started")
        made, exposed = ask(self._Client, self._address, self._authkey, "create", typeid, *args, **kwds)
        return Token(typeid, self._address, made), exposed

    def _debug_info(self) -> str:
        """What the server says of its objects."""
        text: str = ask(self._Client, self._address, self._authkey, "debug_info")
        return text

    def _number_of_objects(self) -> int:
        """How many objects the server holds."""
        count: int = ask(self._Client, self._address, self._authkey, "number_of_objects")
        return count

    @classmethod
    def register(
        cls,
        typeid: str,
        callable: Callable[..., object] | None = None,
        proxytype: Any = None,
        exposed: Iterable[str] | None = None,
        method_to_typeid: Mapping[str, str] | None = None,
        create_method: bool = True,
    ) -> None:
        """Register a type of objects with the class of managers. As `multiprocessing.managers.BaseManager.register`.

        Args:
            typeid: Its name.
            callable: What makes an object; None for a manager that only connects.
            proxytype: The class of its proxies; None makes one.
            exposed: The methods that proxies may call; None is `proxytype._exposed_`, else all public ones.
            method_to_typeid: Methods whose results stay in the server, and the type of the proxies for these.
            create_method: Give the class a method of that name which makes an object and returns its proxy.
        """
        if "_registry" not in vars(cls):
            cls._registry = cls._registry.copy()
        kind = AutoProxy if proxytype is None else proxytype
        exposed = exposed or getattr(kind, "_exposed_", None)
        method_to_typeid = method_to_typeid or getattr(kind, "_method_to_typeid_", None)
        for text in [*(method_to_typeid or {}), *(method_to_typeid or {}).values()]:
            if type(text) is not str:
                raise AssertionError(f"{text!r} is not a string")
        cls._registry[typeid] = (callable, exposed, method_to_typeid, kind)
        if not create_method:
            return

        def make(self: Any, /, *args: Any, **kwds: Any) -> Any:
            token, its_exposed = self._create(typeid, *args, **kwds)
            proxy = kind(token, self._serializer, manager=self, authkey=self._authkey, exposed=its_exposed)
            ask(self._Client, token.address, self._authkey, "decref", token.id)
            return proxy

        make.__name__ = typeid
        setattr(cls, typeid, make)


class SyncManager(BaseManager):
    """A manager of the usual types: lists, dicts, queues, locks, pools. `manycore.Manager()` gives one that runs."""


for _typeid, _callable, _kind in (
    ("Queue", queue.Queue, None),
    ("JoinableQueue", queue.Queue, None),
    ("Event", threading.Event, EventProxy),
    ("Lock", threading.Lock, AcquirerProxy),
    ("RLock", threading.RLock, AcquirerProxy),
    ("Semaphore", threading.Semaphore, AcquirerProxy),
    ("BoundedSemaphore", threading.BoundedSemaphore, AcquirerProxy),
    ("Condition", threading.Condition, ConditionProxy),
    ("Barrier", threading.Barrier, BarrierProxy),
    ("Pool", pool.Pool, PoolProxy),
    ("list", list, ListProxy),
    ("dict", dict, DictProxy),
    ("Value", Value, ValueProxy),
    ("Array", Array, ArrayProxy),
    ("Namespace", Namespace, NamespaceProxy),
):
    SyncManager.register(_typeid, _callable, _kind)
SyncManager.register("Iterator", proxytype=IteratorProxy, create_method=False)
SyncManager.register("AsyncResult", create_method=False)


class SharedMemoryManager(BaseManager, _standard.SharedMemoryManager):
    """A manager of named shared memory: what it has made is unlinked when it is shut down.

    The arguments are those of `BaseManager`.
    """

    _Server = SharedMemoryServer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        resource_tracker.ensure_running()  # one for all: the server's process is to inherit ours
        BaseManager.__init__(self, *args, **kwargs)

    def SharedMemory(self, size: int) -> Any:  # noqa: N802
        """A new piece of named shared memory of `size` bytes."""
        made = shared_memory.SharedMemory(None, create=True, size=size)
        self._track(made)
        return made

    def ShareableList(self, sequence: Iterable[Any] | None) -> Any:  # noqa: N802
        """A new list of fixed size in named shared memory."""
        made: Any = shared_memory.ShareableList(sequence)
        self._track(made.shm)
        return made

    def _track(self, segment: Any) -> None:
        try:
            ask(self._Client, self._address, self._authkey, "track_segment", segment.name)
        except BaseException:
            segment.unlink()
            raise
