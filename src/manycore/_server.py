"""A manager's server, and what is said to it: the protocol of `multiprocessing.managers`.

      client                                        server: a thread a connection
      (object or None, name, args, kwds)    -->
                                            <--     ("#RETURN", result), ("#ERROR", exception), ("#TRACEBACK", text),
                                                    ("#PROXY", (exposed, token)), ("#UNSERIALIZABLE", text)

Invariants:
    a client is unpickled from only after it has shown the key, and it has AUTH_TIMEOUT seconds for that
    a connection carries one request at a time, and none after one that was not answered to its end
If a process dies: the kernel closes its sockets. A forked child of the server keeps none of them open.
"""

from __future__ import annotations

import multiprocessing.managers as _standard
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing import process as _process
from multiprocessing import util
from multiprocessing.context import ProcessError
from multiprocessing.managers import Token, convert_to_error  # type: ignore[attr-defined]
from multiprocessing.reduction import ForkingPickler
from traceback import format_exc
from typing import Any

from manycore import _authentication, connection, shared_memory
from manycore.connection import AUTH_TIMEOUT
from manycore.errors import ManagerDied

__all__ = [
    "Server",
    "SharedMemoryServer",
    "ask",
    "dispatch",
    "exchange",
    "listener_client",
    "open_link",
    "tell",
]

BACKLOG = 128  # clients that may wait to be accepted; each new proxy makes three connections
FULL_SECONDS = 0.05  # how long a server without descriptors waits for one

listener_client = {
    "pickle": (connection.Listener, connection.Client),
    "xmlrpclib": (connection.XmlListener, connection.XmlClient),
}

LOST = (EOFError, ConnectionError, FileNotFoundError)  # what a dead manager's socket gives


def dispatch(c: Any, id: Any, methodname: str, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006  (never written; the standard's default)
    """Have the server at the other end of a connection do something.

    Args:
        c: The connection.
        id: The object's; None for the server itself.
        methodname: What to call.
        args: For it.
        kwds: For it.

    Raises:
        ManagerDied: The server is gone.
        RemoteError: It has failed; the text is its traceback.
    """
    kind, result = exchange(c, (id, methodname, args, kwds))
    if kind == "#RETURN":
        return result
    try:
        raise convert_to_error(kind, result)
    finally:
        del result  # the traceback refers to this frame


def exchange(link: Any, request: tuple[Any, ...]) -> Any:
    """Send a request and receive its answer; a connection on which that was not done to the end is closed."""
    data = getattr(link, "_dumps", ForkingPickler.dumps)(request)
    try:
        link.send_bytes(data)
        answer = link.recv_bytes()
    except LOST as error:
        link.close()
        raise _died(error) from error
    except BaseException:  # an interrupt: the answer would come to the next call
        link.close()
        raise
    return getattr(link, "_loads", ForkingPickler.loads)(answer)


def _died(error: BaseException) -> ManagerDied:
    return ManagerDied(f"the manager's process is gone, and its objects with it ({type(error).__name__}: {error})")


def open_link(client: Callable[..., Any], address: Any, authkey: bytes) -> Any:
    """A connection to the server at an address."""
    try:
        return client(address, authkey=authkey)
    except LOST as error:
        raise _died(error) from error


def ask(client: Callable[..., Any], address: Any, authkey: bytes, name: str, *args: Any, **kwds: Any) -> Any:
    """What the server at an address says to one request."""
    with closing(open_link(client, address, authkey)) as link:
        return dispatch(link, None, name, args, kwds)


def tell(client: Callable[..., Any], address: Any, authkey: bytes, seconds: float, name: str, *args: Any) -> None:
    """Ask for something without caring for the answer, nor longer than `seconds` each for handshake and answer."""
    try:
        with closing(client(address, authkey=authkey, auth_timeout=seconds)) as link:
            link.send((None, name, args, {}))
            link.poll(seconds)
    except (ProcessError, EOFError, OSError) as error:
        util.debug("%s%r was not answered: %s", name, args, error)


class Server(_standard.Server):
    """What runs in a manager's process: objects, and a thread for each connection.

    Args:
        registry: What `BaseManager.register` has gathered.
        address: Where to listen; None for anywhere.
        authkey: What clients must show.
        serializer: "pickle" or "xmlrpclib".
    """

    def __init__(self, registry: dict[str, Any], address: Any, authkey: bytes, serializer: str) -> None:
        if not isinstance(authkey, bytes):
            raise TypeError(f"Authkey {authkey!r} is type {type(authkey)}, not bytes")
        self.registry = registry
        self.authkey = _process.AuthenticationString(authkey)  # type: ignore[attr-defined]
        self.listener = listener_client[serializer][0](address=address, backlog=BACKLOG)
        self.address = self.listener.address
        self.id_to_obj: dict[str, Any] = {"0": (None, ())}
        self.id_to_refcount: dict[str, int] = {}
        self.id_to_local_proxy_obj: dict[str, Any] = {}
        self.mutex = threading.Lock()
        self.stop_event = threading.Event()
        self._links: set[Any] = set()

    def serve_forever(self) -> None:
        """Serve until a manager's `shutdown`, then exit."""
        _process.current_process()._manager_server = self  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=self._leave_to_parent)
        threading.Thread(target=self.accepter, daemon=True).start()
        try:
            self.stop_event.wait()
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            if sys.stdout is not sys.__stdout__:
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            sys.exit(0)

    def _leave_to_parent(self) -> None:
        """In a forked child: sockets that it kept would hide the server's death from clients."""
        for held in (self.listener._listener._socket, *self._links):
            held.close()

    def accepter(self) -> None:
        """Accept connections; each is shown the door or served by a thread of its own."""
        while not self.stop_event.is_set():
            try:
                link = self.listener.accept()
            except OSError:  # no descriptor left: those that are given back are not announced
                self.stop_event.wait(FULL_SECONDS)
                continue
            try:
                threading.Thread(target=self.handle_request, args=(link,), daemon=True).start()
            except RuntimeError as error:
                util.info("no thread for a connection: %s", error)
                link.close()

    def handle_request(self, conn: Any) -> None:
        """Serve a connection to its end."""
        self._links.add(conn)
        try:
            super().handle_request(conn)
        finally:
            self._links.discard(conn)

    def _handle_request(self, c: Any) -> None:
        try:
            link = socket.socket(fileno=c.fileno())
            try:
                _authentication.Handshake(link, self.authkey, listening=True, timeout=AUTH_TIMEOUT).run()
            finally:
                link.detach()
        except (ProcessError, EOFError, OSError) as error:
            util.info("a client was not let in: %s", error)
            return
        try:
            _, name, args, kwds = c.recv()
            if name not in self.public:
                raise ValueError(f"{name!r} unrecognized")
            message = ("#RETURN", getattr(self, name)(c, *args, **kwds))
        except Exception:
            message = ("#TRACEBACK", format_exc())
        try:
            c.send(message)
        except Exception as error:
            util.info("the answer %r could not be sent: %s", message, error)
            try:
                c.send(("#TRACEBACK", format_exc()))
            except Exception:
                util.debug("nor the reason")

    def serve_client(self, conn: Any) -> None:
        """Answer the calls of one thread's proxies until it closes the connection; then exit the thread."""
        receive, loads, send = conn.recv_bytes, conn._loads, conn.send
        try:
            while not self.stop_event.is_set():
                answer = self._answer(conn, loads, receive())
                try:
                    send(answer)
                except OSError:
                    raise
                except Exception:
                    send(("#UNSERIALIZABLE", format_exc()))
                del answer
        except (EOFError, OSError) as error:
            util.debug("a connection is over: %s", error)
        raise SystemExit(0)

    def _answer(self, conn: Any, loads: Callable[[bytes], Any], request: bytes) -> tuple[str, Any]:
        """What comes of one call."""
        try:
            ident, name, args, kwds = loads(request)
            known = self.id_to_obj.get(ident) or self.id_to_local_proxy_obj[ident]
            obj, exposed, typeids = known
            function = getattr(obj, name, None) if name in exposed else None
            if function is None:
                return "#RETURN", self._fallback(conn, ident, name, obj, exposed)(*args, **kwds)
        except BaseException:
            return "#TRACEBACK", format_exc()
        try:
            result = function(*args, **kwds)
        except BaseException as error:
            if not hasattr(error, "__notes__"):
                error.add_note(f"in the manager:\n{format_exc()}")
            return "#ERROR", error
        typeid = typeids and typeids.get(name)
        if not typeid:
            return "#RETURN", result
        try:
            made, its_exposed = self.create(conn, typeid, result)
        except Exception:
            return "#TRACEBACK", format_exc()
        return "#PROXY", (its_exposed, Token(typeid, self.address, made))

    def _fallback(self, conn: Any, ident: str, name: str, obj: Any, exposed: Any) -> Callable[..., Any]:
        fallback: Any = self.fallback_mapping.get(name)
        if fallback is None:
            if name in exposed:
                getattr(obj, name)  # raises as it does
            raise AttributeError(f"method {name!r} of {type(obj)!r} object is not in exposed={exposed!r}")
        return partial(fallback, self, conn, ident, obj)


class _Segments:
    """The names of the shared memory that a server is to unlink."""

    def __init__(self) -> None:
        self.segment_names: list[str] = []

    def register_segment(self, name: str) -> None:
        self.segment_names.append(name)

    def destroy_segment(self, name: str) -> None:
        self.segment_names.remove(name)
        segment = shared_memory.SharedMemory(name)
        segment.close()
        segment.unlink()

    def unlink(self) -> None:
        for name in tuple(self.segment_names):
            try:
                self.destroy_segment(name)
            except FileNotFoundError:  # its user has unlinked it
                pass


class SharedMemoryServer(Server, _standard.SharedMemoryServer):
    """The server of a `SharedMemoryManager`: it unlinks the memory that it was told of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        Server.__init__(self, *args, **kwargs)
        self.shared_memory_context: Any = _Segments()
