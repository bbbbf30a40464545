"""The zygote: a clean process with one thread, executed afresh, that forks a child a request.

      parent                             zygote                         child
      LAUNCH (fds) ---- control ---->    fork  ----------------------->  become()      a spare is asked by the parent
             <-------- STARTED (pidfd) ---------------------------------   |
      pidfd in epoll                     SIGCHLD                        function
             <-------- EXITED (status, rusage) --- wait4  <------------  _exit

It is executed and not forked from the parent, so no lock of the parent's threads is ever held in it,
and forking it costs the same whatever the parent's size.

Invariants:
    one thread, so that a fork copies a consistent process
    every child is in `_children` from its fork until it is reaped, and only this process reaps it; so
        its pid, and the process group of the same number, can mean nobody else meanwhile
    nothing here waits for the parent: reports that do not fit the socket stay in `_unsent`
If a process dies:
    a child: reaped here, and EXITED carries the true status. If a signal ended it, the rest of its
        process group is killed while its pid is still held by the zombie.
    the parent: its pidfd becomes readable, or the control socket ends. Every child's group and every
        orphan of theirs (adopted, as this process is a subreaper) is killed; then this process exits.
        Children that may linger get a moment first, to see their parent's end and finish. Should this
        process be stopped, the kernel continues it then; while it imports, the kernel kills it.
    the zygote: the children go on; the parent learns their exit codes otherwise and executes another.

A spare child is forked in advance (`spares.py`) once the last one launched has ended, or has had a moment for its own
start, and takes the next request, or the one after that, from the parent itself; it knows the parent's directory,
environment and path of that moment, so it is dropped when they change.

Source: Chrome's Linux zygote, for the idea; the mechanisms are in worker.py.
"""

from __future__ import annotations

# The same as `signal`, but without its enumerations: who waits for a first result waits for every import here.
import _signal as signal  # type: ignore[import-not-found]
import _socket
import errno
import faulthandler
import gc
import marshal
import os
import resource
import select
import sys
import time

from manycore._launch import habits, last_words, pages, threads, wire, worker
from manycore._launch.spares import Spares, decode, receive
from manycore._memory import keeper
from manycore._memory.keeper import Keeper
from manycore._memory.memfd import create_memfd
from manycore._native import process as _native

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Context = tuple[str | None, dict[bytes, bytes], list[str], list[str], int]

_SPARE_AFTER_S = 0.004  # from a launch to the next spare, unless the child ends sooner: both would want the same cores
_FATAL = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # those of faulthandler.enable
_NO_ROOM = " (the user's limit of processes, RLIMIT_NPROC, or that of a control group or of the machine)"
_LINGER_S = 0.3  # what a child that may linger has after its parent's death; all are to be gone within a second


class _Child:
    __slots__ = ("born", "launch_id", "lifeline", "linger", "owns_group", "stack")

    def __init__(self, lifeline: int, stack: int) -> None:
        self.launch_id = 0  # 0: a spare, of which the parent knows nothing
        self.lifeline = lifeline  # kept open, so that a child that closes every descriptor stays tied to the parent
        self.stack = stack
        self.linger = False  # outlives the parent by _LINGER_S
        self.born = time.monotonic()
        self.owns_group = False  # the group ends with the child, however the child ends


class Zygote:
    """The state of the zygote's one loop."""

    def __init__(self, parent_pid: int, keeper_ends: int) -> None:
        self._parent_pid = parent_pid
        self._control = _socket.socket(fileno=wire.CONTROL_FD)
        self._children: dict[int, _Child] = {}
        self._unsent: list[bytes] = []
        self._cwd: str | None = None
        self._preloaded: list[str] = []
        self._learned: set[str] = set()  # what children told that they import, also what cannot be imported here
        self._lessons: list[str] = []  # of it, what is still to be imported
        self._path_is_new = False
        self._frozen = False
        self._pages = b""  # that every child writes to, see pages.py
        self._told = b""  # those that one child wrote to
        self._asks = True  # whether children are to tell
        self._spares = Spares()
        self._open = (sys.stdin.fileno(), keeper.client_fd())  # in every child
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._arm(signal.SIGCONT)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._poller = select.poll()
        self._poller.register(wire.CONTROL_FD, select.POLLIN)
        self._poller.register(wire.PARENT_FD, select.POLLIN)
        self._poller.register(self._wake_read, select.POLLIN)
        self._poller.register(self._spares.said, select.POLLIN)
        self._keeper = Keeper(wire.KEPT_FD) if keeper_ends == 2 else None
        if self._keeper is not None:
            self._poller.register(wire.KEPT_FD, select.POLLIN)

    def run(self) -> NoReturn:
        """Serve until the parent is gone."""
        while True:
            events = self._poller.poll(self._patience_ms())
            for fd, event in events:
                if fd == self._wake_read:
                    self._reap()
                elif fd == self._spares.said:
                    self._note_taken()
                elif fd == wire.PARENT_FD:
                    self._end(_LINGER_S)
                elif fd == wire.KEPT_FD and self._keeper is not None:
                    self._keeper.serve()
                else:
                    if event & select.POLLOUT:
                        self._flush()
                    if event & ~select.POLLOUT:
                        self._serve()

    def _patience_ms(self) -> float | None:
        """How long to wait for events; a spare is made in a quiet moment, and dropped when it was not needed."""
        now = time.monotonic()
        self._spares.expire(now)
        if self._lessons:
            if not self._poller.poll(0):
                self._learn()
            if self._lessons:
                return 0.0
        if self._spares.due and now >= self._spares.due and not self._poller.poll(0):
            self._make_spare()
        waits = [due - now for due in self._spares.times()]
        if self._keeper is not None and (until := self._keeper.expire()) is not None:
            waits.append(until)
        return max(0.0, min(waits)) * 1000 if waits else None

    def _drain_wakeups(self) -> None:
        try:
            while len(os.read(self._wake_read, 512)) == 512:
                pass
        except BlockingIOError:
            pass

    # -- requests ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            record, fds, truncated = receive(self._control)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            record = b""
        if not record:
            self._end(_LINGER_S)
        try:
            request = decode(record, fds)
            if request[0] in {wire.LAUNCH, wire.LONG}:
                if truncated:
                    self._report(wire.FAILED, request[1], 24, "the zygote has no descriptor left (RLIMIT_NOFILE)")
                else:
                    self._launch(request, list(fds))
            elif request[0] == wire.PRELOAD:
                self._preload(*request[1:])
            elif request[0] == wire.END:
                self._end(0.0)
            elif request[0] == wire.OWN_GROUP:
                self._note_taken()
                for child in self._children.values():
                    if child.launch_id == request[1]:
                        child.owns_group = True
        finally:
            for fd in fds:
                os.close(fd)

    def _launch(self, request: tuple[Any, ...], fds: list[int]) -> None:
        _, launch_id, entry, _, _, _, linger, generation, context = request
        self._spares.renew(generation)
        if context is not None:
            self._adopt(context)
        if entry.startswith("manycore."):  # ours, so free of surprises: imported once, here, for all children
            self._import(entry.partition(":")[0])
        self._freeze()
        try:
            _, child = self._fork(lambda: self._take(request, fds), [wire.CONTROL_FD, *fds], asked=True)
        except OSError as error:
            text = f"the zygote cannot fork: {error.strerror}{_NO_ROOM if error.errno == errno.EAGAIN else ''}"
            self._report(wire.FAILED, launch_id, error.errno or 0, text)
            return
        child.launch_id = launch_id
        child.linger = linger
        self._spares.due = time.monotonic() + _SPARE_AFTER_S

    def _fork(self, run: Callable[[], int], keep: list[int], *, asked: bool) -> tuple[int, _Child]:
        """Fork a child that runs `run` with the descriptors of `keep`, and ends with what that returns.

        If it is `asked` for, spares give way to it where there is a limit of processes.
        """
        count = threads.count()
        if count > 1:
            blame = ", ".join(self._preloaded) or "what the interpreter imports at its start (sitecustomize, *.pth)"
            raise OSError(errno.EDEADLK, f"it has {count} threads, which a fork does not copy; from one of: {blame}")
        stack = create_memfd("manycore-stacks")
        lifeline = -1
        try:
            lifeline = os.open(f"/proc/self/fd/{wire.LIFELINE_FD}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                pid = os.fork()
            except BlockingIOError:  # a limit of processes
                if not asked:
                    raise
                self._make_room()
                pid = os.fork()
        except OSError:
            for fd in (lifeline, stack):
                if fd >= 0:
                    os.close(fd)
            raise
        if pid == 0:
            code = 1
            try:
                if not self._asks:
                    _native.populate(self._pages)
                threads.no_longer_alone()
                self._control.detach()
                worker.prepare(lifeline, stack, (*self._open, *keep), self._asks)
                code = run()
            finally:
                os._exit(code & 0xFF)
        try:
            os.setpgid(pid, pid)  # the child does it too; whoever is first
        except OSError:
            pass
        child = self._children[pid] = _Child(lifeline, stack)
        return pid, child

    def _take(self, request: tuple[Any, ...], fds: list[int]) -> int:
        """In a child: carry out a request."""
        _, launch_id, entry, payload, title, standard, *_ = request
        numbers: list[int | None] = [None, None, None]
        for number in range(3):
            if standard & 1 << number:
                numbers[number] = fds.pop(0)
        payload_fd = fds.pop(0) if payload is None else None
        worker.become(launch_id, wire.CONTROL_FD, self._parent_pid, numbers)
        _native.set_title((title or f"manycore: {entry}").encode("utf-8", "replace"))
        if self._cwd is not None:
            try:
                os.chdir(self._cwd)
            except OSError:
                pass
        return worker.run(entry, payload, payload_fd, fds)

    # -- the spares --------------------------------------------------------------------------------------

    def _make_spare(self) -> None:
        """Fork a child in advance: it is ready but for its request, and so saves the next launch half its time."""
        self._spares.due = 0.0
        slot = self._spares.place()
        if slot is None:
            return
        if self._path_is_new:
            habits.look_into([entry or self._cwd or "" for entry in sys.path])
            self._path_is_new = False
        self._freeze()
        try:
            pid, _ = self._fork(lambda: self._be_spare(slot), self._spares.keep(slot), asked=False)
        except OSError:  # then the next launch will say so
            return
        self._spares.made(pid, slot)

    def _be_spare(self, slot: int) -> int:
        _native.set_title(f"manycore: spare of {self._parent_pid}".encode())
        found = self._spares.be(slot)
        return 0 if found is None else self._take(*found)

    def _look(self) -> None:
        self._note_taken()
        self._reap()

    def _note_taken(self) -> None:
        for pid, launch_id, linger in self._spares.taken():
            child = self._children[pid]
            child.launch_id = launch_id
            child.linger = linger
            child.born = time.monotonic()
            # Where one process follows another, the next finds a spare that has had a whole launch's time to get ready.
            self._spares.wanted = 2 if linger else 1
            self._spares.due = child.born + _SPARE_AFTER_S

    def _make_room(self) -> None:
        """Have the parent's limit of processes, and none that counts for it in vain: spares, and what has ended."""
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, resource.prlimit(self._parent_pid, resource.RLIMIT_NPROC))
        except (OSError, ValueError):
            pass
        self._spares.wait_for_room(self._wake_read, self._look)
        self._reap()

    # -- what the children inherit -----------------------------------------------------------------------

    def _adopt(self, context: Context) -> None:
        self._cwd, environment, path, argv, umask = context
        os.umask(umask)
        now = os.environb
        for name in [name for name in now if name not in environment]:
            del now[name]
        for name, value in environment.items():
            if now.get(name) != value:
                now[name] = value
        self._path_is_new |= sys.path != path
        sys.path[:] = path
        sys.argv[:] = argv

    def _preload(self, modules: list[str], context: Context | None, generation: int) -> None:
        self._spares.renew(generation)
        if context is not None:
            self._adopt(context)
        for name in modules:
            error = self._import(name)
            if error:
                self._report(wire.PRELOAD_FAILED, name, error)
            elif not threads.settle():
                self._report(wire.PRELOAD_FAILED, name, "it starts threads, and with threads no fork is safe")
                self._retire()
            else:
                self._preloaded.append(name)
        if not all(name.startswith("manycore.") for name in modules):  # ours leave nothing to be collected
            gc.collect()
        self._reap()

    def _retire(self) -> NoReturn:
        """Leave the children to themselves and the parent to another zygote: what this one has imported cannot stay."""
        while self._unsent:
            select.poll().poll(1)
            self._flush()
        os._exit(0)

    def _learn(self) -> None:
        """Import one module that children had to import, the last first, as those before it may need it.

        One, for deaths are reported in between: whoever waits for a report does so for 50 ms.
        """
        name = self._lessons.pop()
        self._while_armed(lambda: habits.learn(name))
        if not threads.settle():
            self._retire()

    def _import(self, name: str) -> str:
        if name in sys.modules:
            return ""
        try:
            self._while_armed(lambda: __import__(name))
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _while_armed(self, change: Callable[[], object]) -> None:
        """Change what children inherit; that can take long, and should the parent die meanwhile, the kernel kills."""
        self._spares.drop()
        self._frozen = False
        self._arm(signal.SIGKILL)
        try:
            threads.unhooked(change)
        finally:
            self._arm(signal.SIGCONT)

    @staticmethod
    def _arm(signum: int) -> None:
        try:
            _native.arm(wire.PARENT_PIPE_FD, os.getpid(), signum)
        except OSError:
            pass

    def _freeze(self) -> None:
        if not self._frozen:
            gc.freeze()  # the collector of a child does not touch, and so copy, the pages that all share
            self._frozen = True
            self._asks, self._told = True, b""

    # -- deaths --------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        self._drain_wakeups()
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None:
                return
            child = self._children.get(info.si_pid)
            if child is not None and not child.launch_id:  # a spare: what it has said of a request is there by now
                self._note_taken()
            self._children.pop(info.si_pid, None)
            if child is not None and (child.owns_group or info.si_code != os.CLD_EXITED):
                _kill_group(info.si_pid)  # while the zombie still holds the number
            _, status, usage = os.wait4(info.si_pid, 0)
            if child is None:
                continue  # an orphan of some child's
            stacks: tuple[str | None, str | None] = (None, None)
            if info.si_code == os.CLD_EXITED:
                names, written = habits.read(child.stack)
                if written and self._asks:
                    self._asks = not self._told
                    self._pages = pages.common(self._told, written)
                    self._told = written
                new = [name for name in names if name not in self._learned]
                self._learned.update(new)
                self._lessons += [name for name in new if name not in sys.modules]
            elif info.si_status in _FATAL:
                stacks = last_words.read(child.stack, info.si_pid)
            os.close(child.stack)
            os.close(child.lifeline)
            if not child.launch_id:
                self._spares.ended(info.si_pid)
                self._report(wire.GONE, info.si_pid)
                continue
            self._report(
                wire.EXITED,
                child.launch_id,
                info.si_pid,
                status,
                usage.ru_utime,
                usage.ru_stime,
                usage.ru_maxrss * 1024,
                time.monotonic() - child.born,
                *stacks,
            )
            if self._spares.due:  # a core is free, and whoever waited for this child may start the next
                self._spares.due = child.born

    def _report(self, *report: Any) -> None:
        self._unsent.append(marshal.dumps(report))
        self._flush()

    def _flush(self) -> None:
        while self._unsent:
            try:
                self._control.send(self._unsent[0], _socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._poller.modify(wire.CONTROL_FD, select.POLLIN | select.POLLOUT)
                return
            except OSError:  # nobody is there to be told; the poller says so too
                self._unsent.clear()
                return
            del self._unsent[0]
        self._poller.modify(wire.CONTROL_FD, select.POLLIN)

    def _end(self, linger: float) -> NoReturn:
        """Kill all that came of this process, then exit. The parent, if it lives, still learns how they ended.

        Args:
            linger: Seconds until those that may linger are killed too.
        """
        self._note_taken()
        for pid, child in self._children.items():
            child.owns_group = True
            if not child.linger:
                _kill_group(pid)
        deadline = time.monotonic() + linger
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        while True:
            self._reap()
            left = deadline - time.monotonic()
            if left <= 0 or not any(child.linger for child in self._children.values()):
                break
            poller.poll(left * 1000)
        for pid in self._children:
            _kill_group(pid)
        own = f"/proc/self/task/{os.getpid()}/children"
        while True:
            try:
                with open(own, "rb") as file:
                    pids = [int(pid) for pid in file.read().split()]
            except OSError:  # a kernel without CONFIG_PROC_CHILDREN
                pids = []
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            try:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                os._exit(0)
            self._reap()  # those whom they leave behind are this process's children then


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        pass


def main(parent_pid: int, keeper_ends: int, usual: list[str]) -> NoReturn:
    """Be the zygote of `parent_pid`; runs in a process that was executed for this alone.

    Args:
        parent_pid: Whose zygote.
        keeper_ends: It has none, the first or both of KEEPER_FD and KEPT_FD; with both it is its tree's keeper.
        usual: Modules that children will import.
    """
    for name in ("gc", "sys", "main"):  # the children's `__main__` is the user's
        vars(sys.modules["__main__"]).pop(name, None)
    try:
        _native.find_title_area()
        _native.set_title(f"manycore: zygote of {parent_pid}".encode())
        _native.set_child_subreaper()
    except OSError:
        pass
    stack = create_memfd("manycore-stacks")
    if stack != wire.STACK_FD:
        os.dup2(stack, wire.STACK_FD, inheritable=False)
    given = [wire.CONTROL_FD, wire.LIFELINE_FD, wire.PARENT_FD, wire.LIFELINE_WRITE_FD, wire.PARENT_PIPE_FD]
    given += [*wire.SLOT_FDS, *wire.PEN_FDS]
    given += [wire.KEEPER_FD, wire.KEPT_FD][:keeper_ends]
    for fd in given:
        os.set_inheritable(fd, False)
    os.closerange(given[-1] + 1, 0x7FFFFFFF)  # what the parent left inheritable
    if keeper_ends:
        keeper.connect(wire.KEEPER_FD)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # two a child; the children take over the parent's
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    sys.stdin = open(null, encoding="utf-8", closefd=False)  # noqa: SIM115  # it stays open
    faulthandler.enable(file=wire.STACK_FD)
    try:
        _native.tell_crashes(wire.STACK_FD)
    except OSError:
        pass
    faulthandler.register(wire.STACK_SIGNAL, file=wire.STACK_FD, all_threads=True)
    threads.unhooked(lambda: habits.learn_usual(usual))
    zygote = Zygote(parent_pid, keeper_ends)
    for number in range(3):  # the parent may close its own, and whoever reads them must then see the end
        os.dup2(null, number)
    zygote.run()
