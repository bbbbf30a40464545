"""The zygote: a clean process with one thread, executed afresh, that forks a child a request.

      parent                             zygote                         child
      LAUNCH (fds) ---- control ---->    fork  ----------------------->  become()      a spare is asked by the parent
             <-------- STARTED (pidfd) ---------------------------------   |
      pidfd in epoll                     SIGCHLD                        function
             <-------- EXITED (status, rusage) --- wait4  <------------  _exit

It is executed and not forked from the parent, so no lock of the parent's threads is ever held in it,
and forking it costs the same whatever the parent's size.

What is done again and again for the children is in C (`_native/brood.pyx`); here are the requests, and what is seldom.

Invariants, beside those of `_native/c/brood.h`:
    one thread, so that a fork copies a consistent process
    nothing here waits for the parent
If a process dies:
    a child: reaped here, and EXITED carries the true status. If a signal ended it, the rest of its
        process group is killed while its pid is still held by the zombie.
    the parent: its pidfd becomes readable, or the control socket ends. Every child's group and every
        orphan of theirs (adopted, as this process is a subreaper) is killed; then this process exits.
        Children that may linger get a moment first, to see their parent's end and finish. The keeper then removes
        the tree's folders of sockets. Should this process be stopped, the kernel continues it then; an import that
        takes long ends by SIGKILL.
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

from manycore._launch import codes, habits, image, last_words, pages, spares, threads, wire, worker
from manycore._memory import keeper
from manycore._memory.keeper import Keeper
from manycore._memory.memfd import create_memfd
from manycore._native import brood
from manycore._native import process as _native

TYPE_CHECKING = False  # typing is not imported on a worker's way
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    Context = tuple[str | None, dict[bytes, bytes], list[str], list[str], int]

_FATAL = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # those of faulthandler.enable
_NO_ROOM = " (the user's limit of processes, RLIMIT_NPROC, or that of a control group or of the machine)"
_ROOM_S = 1.0  # for spares to end; longer only for one that somebody has stopped
_LINGER_S = 0.3  # what a child that may linger has after its parent's death; all are to be gone within a second
_IMPORT_S = 0.6  # what an import that is under way has then, with all that comes after it
_SWEEP_S = 0.8  # from the parent's death, for processes of the standard methods to let go of the program's folder


class Zygote:
    """The state of the zygote's one loop."""

    def __init__(self, parent_pid: int, keeper_ends: int) -> None:
        self._parent_pid = parent_pid
        self._control = _socket.socket(fileno=wire.CONTROL_FD)
        self._cwd: str | None = None
        self._preloaded: list[str] = []
        self._lessons: list[str] = []  # what children told that they import, still to be imported
        self._files: list[tuple[str, str]] = []  # the same of callers' modules, whose code is still to be read
        self._codes = codes.Codes()
        self._path_is_new = False
        self._frozen = False
        self._told = b""  # the pages that one child wrote to
        self._asks = True  # whether children are to tell
        self._open = (sys.stdin.fileno(), keeper.client_fd())  # in every child
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._places = [_socket.socket(fileno=fd) for fd in wire.SLOT_FDS]  # now: modules may set a default timeout
        self._said, self._say = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._keeper = Keeper(wire.KEPT_FD) if keeper_ends == 2 else None
        others = [wire.CONTROL_FD, wire.PARENT_FD, *([] if self._keeper is None else [wire.KEPT_FD])]
        places = list(zip(wire.SLOT_FDS, wire.PEN_FDS, strict=True))
        wake = self._wake_read, self._wake_write
        self._brood = brood.Brood(others, wire.LIFELINE_FD, wake, self._said, places)
        self._arm(wire.PARENT_PIPE_FD, signal.SIGCONT)  # has it died already, then `run` sees that
        self._watch = os.open(f"/proc/self/fd/{wire.PARENT_PIPE_FD}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Serve until the parent is gone."""
        while True:
            event, which = self._brood.wait(self._until())
            if event == brood.BORN:
                self._be_spare(which)
            elif event == brood.UNPREPARED:
                self._prepare()
            elif event == brood.STEADY:
                self._take_image()
            elif event == brood.WORDS:
                self._hear(which)
            elif event == brood.TIME:
                self._learn()
            elif which == wire.PARENT_FD:
                self._end(_LINGER_S)
            elif which == wire.KEPT_FD and self._keeper is not None:
                self._keeper.serve()
            else:
                self._serve()

    def _until(self) -> int | None:
        """When there is something to do though nothing happens, as `time.monotonic_ns`."""
        left = self._keeper.expire() if self._keeper is not None else None
        if self._lessons or self._files:
            left = 0.0
        return None if left is None else time.monotonic_ns() + int(max(0.0, left) * 1e9)

    # -- requests ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            record, fds, truncated = spares.receive(self._control)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            record = b""
        if not record:
            self._end(_LINGER_S)
        try:
            request = spares.decode(record, fds)
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
                self._brood.own_group(request[1])
        finally:
            for fd in fds:
                os.close(fd)

    def _launch(self, request: tuple[Any, ...], fds: list[int]) -> None:
        _, launch_id, entry, _, _, _, linger, generation, context = request
        self._brood.renew(generation)
        if context is not None:
            self._adopt(context)
        if entry.startswith("manycore."):  # ours, so free of surprises: imported once, here, for all children
            self._import(entry.partition(":")[0])
        self._freeze()
        try:
            pid = self._fork()
        except OSError as error:
            text = f"the zygote cannot fork: {error.strerror}{_NO_ROOM if error.errno == errno.EAGAIN else ''}"
            self._report(wire.FAILED, launch_id, error.errno or 0, text)
            return
        if pid == 0:
            self._live(lambda: self._take(request, fds), [wire.CONTROL_FD, *fds])
        self._brood.launched(pid, launch_id, linger)

    def _fork(self) -> int:
        """Fork a child that is asked for; spares give way to it where there is a limit of processes."""
        try:
            try:
                return self._brood.fork()
            except BlockingIOError:  # a limit of processes
                self._make_room()
                return self._brood.fork()
        except OSError as error:
            if error.errno != errno.EDEADLK:
                raise
            blame = ", ".join(self._preloaded) or "what the interpreter imports at its start (sitecustomize, *.pth)"
            text = f"it has {threads.count()} threads, which a fork does not copy; from one of: {blame}"
            raise OSError(errno.EDEADLK, text) from None

    # -- in a child ----------------------------------------------------------------------------------

    def _live(self, run: Callable[[], int], keep: list[int]) -> NoReturn:
        """From the fork to the end, which is what `run` returns; of all descriptors, those in `keep` stay open."""
        code = 1
        try:
            threads.no_longer_alone()
            self._control.detach()
            worker.prepare(self._brood.lifeline, self._brood.stack, (*self._open, *keep), self._asks)
            code = run()
        finally:
            os._exit(code & 0xFF)

    def _be_spare(self, place: int) -> NoReturn:
        def run() -> int:
            _native.set_title(f"manycore: spare of {self._parent_pid}".encode())
            found = spares.be(self._places[place], self._say)
            return 0 if found is None else self._take(*found)

        self._live(run, [wire.CONTROL_FD, wire.SLOT_FDS[place], self._say])

    def _take(self, request: tuple[Any, ...], fds: list[int]) -> int:
        """Carry out a request."""
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

    # -- what is seldom ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Have here what spares will all write to."""
        if self._path_is_new:
            habits.look_into([entry or self._cwd or "" for entry in sys.path])
            self._path_is_new = False
        self._freeze()
        self._brood.prepared = True

    def _take_image(self) -> None:
        try:
            runs = image.memory()
        except Exception:  # no memory, or an audit hook that a module has set; children do without
            runs = b""
        self._brood.take_image(runs)

    def _make_room(self) -> None:
        """Have the parent's limit of processes, and none that counts for it in vain: spares, and what has ended."""
        try:
            resource.setrlimit(resource.RLIMIT_NPROC, resource.prlimit(self._parent_pid, resource.RLIMIT_NPROC))
        except (OSError, ValueError):
            pass
        self._brood.drop()
        poller = select.poll()
        poller.register(self._said, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        deadline = time.monotonic() + _ROOM_S
        while self._brood.has_spares() and (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self._reap()
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
        if sys.path != path:
            self._path_is_new = True
            self._brood.prepared = False
        sys.path[:] = path
        sys.argv[:] = argv

    def _preload(self, modules: list[str], context: Context | None, generation: int) -> None:
        self._brood.renew(generation)
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
        while self._brood.is_telling():
            select.poll().poll(1)
        os._exit(0)

    def _learn(self) -> None:
        """Import one module that children had to import, the last first, as those before it may need it; or read one.

        One, for deaths are reported in between: whoever waits for a report does so for 50 ms.
        """
        if self._lessons:
            name = self._lessons.pop()
            self._while_armed(lambda: habits.learn(name))
            if not threads.settle():
                self._retire()
        elif self._files and self._codes.learn(*self._files.pop()):  # a spare can do without
            self._frozen = self._brood.prepared = False

    def _import(self, name: str) -> str:
        if name in sys.modules:
            return ""
        try:
            self._while_armed(lambda: __import__(name))
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _while_armed(self, change: Callable[[], object]) -> None:
        """Change what children inherit. Should the parent die meanwhile and that take long, the kernel kills."""
        self._brood.drop()
        self._frozen = self._brood.prepared = False
        if not self._arm(self._watch, wire.END_SIGNAL):
            self._end(_LINGER_S)
        try:
            threads.unhooked(change)
        finally:
            self._arm(self._watch, signal.SIGCONT)
            self._brood.listen()  # a module may have set a handler, or put back what it took for the one before it

    @staticmethod
    def _arm(fd: int, signum: int) -> bool:
        try:
            return _native.arm(fd, os.getpid(), signum)
        except OSError:
            return True

    def _freeze(self) -> None:
        if not self._frozen:
            gc.freeze()  # the collector of a child does not touch, and so copy, the pages that all share
            self._frozen = True
            self._asks, self._told = True, b""
            self._brood.give_pages(b"")

    # -- deaths --------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while pid := self._brood.reap():
            self._hear(pid)

    def _hear(self, pid: int) -> None:
        """Read what a child that has ended left: the stacks of a crash, or what it learned; then have it reaped."""
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if info is None:
            return
        stack = self._brood.stack_of(pid)
        if info.si_code == os.CLD_EXITED:
            names, files, written = habits.read(stack)
            if written and self._asks:
                self._asks = not self._told
                if not self._asks:
                    self._brood.give_pages(pages.common(self._told, written))
                self._told = written
            self._lessons += [name for name in names if name not in habits.learned and name not in sys.modules]
            self._files += [lesson for lesson in reversed(files) if lesson[0] not in habits.learned]
            habits.learned.update(names, (name for name, _ in files))
        elif info.si_status in _FATAL:
            self._report(wire.WORDS, self._brood.launch_of(pid), *last_words.read(stack, pid))
        self._brood.bury(pid)

    def _report(self, *report: Any) -> None:
        self._brood.tell(marshal.dumps(report))

    def _end(self, linger: float) -> NoReturn:
        """Kill all that came of this process, then exit. The parent, if it lives, still learns how they ended.

        Args:
            linger: Seconds until those that may linger are killed too.
        """
        self._brood.kill(all=False)
        deadline = time.monotonic() + linger
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        while True:
            self._reap()
            left = deadline - time.monotonic()
            if left <= 0 or not self._brood.lingers():
                break
            poller.poll(left * 1000)
        self._brood.kill(all=True)
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
                self._sweep(deadline - linger + (_SWEEP_S if linger else 0.0))
                os._exit(0)
            self._reap()  # those whom they leave behind are this process's children then

    def _sweep(self, until: float) -> None:
        """Remove the folders that the tree's processes could not remove themselves, having been killed."""
        if self._keeper is not None:
            self._keeper.serve()
            if self._keeper.folders:
                from manycore._launch import folder  # needed here alone

                folder.remove(self._keeper.folders, until)


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
    _native.end_after(wire.END_SIGNAL, _IMPORT_S)
    zygote = Zygote(parent_pid, keeper_ends)
    for number in range(3):  # the parent may close its own, and whoever reads them must then see the end
        os.dup2(null, number)
    zygote.run()
