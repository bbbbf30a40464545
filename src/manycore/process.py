"""`Process` objects: the standard interface and meaning, and what else one wants to know of a process.

The state that makes a process a process of this program (`current_process`, `active_children`, the
family tree) is `multiprocessing`'s own, so that either library sees the other's processes. What starts
a process is in `manycore._launch.popen`, one class a start method.

If a process dies: `join` returns, `certificate` says how, and `result` raises `WorkerDied`.
Unlike multiprocessing: a daemonic process may have children; they end with it.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from multiprocessing import process as _std
from multiprocessing.process import active_children, current_process, parent_process

from manycore._launch import stacks, titles

TYPE_CHECKING = False  # every process imports this module, so it imports little itself
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TextIO

    from manycore._launch import Certificate
    from manycore._launch.last_words import LastWords
    from manycore._launch.lifeline import Tie
    from manycore._launch.outcome import Outcome

__all__ = ["BaseProcess", "active_children", "current_process", "parent_process"]


class _Settings:
    """What a child sets for itself before it runs. Types are checked here, in the parent; what is wrong all the same
    (a directory that does not exist, a core that may not be used) is raised in the child as if `run` had raised it.
    """

    def __init__(
        self,
        nice: int | None,
        cpu_affinity: Iterable[int] | None,
        memory_limit: int | None,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
    ) -> None:
        from manycore._launch.arguments import integer

        self.nice = None if nice is None else integer("nice", nice)
        self.cpu_affinity = None if cpu_affinity is None else _cores(cpu_affinity)
        self.memory_limit_bytes = None if memory_limit is None else integer("memory_limit", memory_limit, least=1)
        self.env = None if env is None else _environment(env)
        if cwd is not None and not isinstance(cwd, (str, bytes, os.PathLike)):
            raise TypeError(f"cwd must be a path, not {cwd!r}")
        self.cwd = None if cwd is None else os.fspath(cwd)

    def apply(self) -> None:
        if self.env is not None:
            for name in [name for name in os.environ if name not in self.env]:
                del os.environ[name]
            os.environ.update(self.env)
        if self.cwd is not None:
            os.chdir(self.cwd)
        if self.cpu_affinity is not None:
            self._bind(self.cpu_affinity)
        if self.nice is not None:
            os.nice(self.nice)
        if self.memory_limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (self.memory_limit_bytes, self.memory_limit_bytes))

    def _bind(self, cores: frozenset[int]) -> None:
        """The kernel minds only if none of the cores may be used."""
        try:
            os.sched_setaffinity(0, cores)
            refused = cores - os.sched_getaffinity(0)
        except (OSError, OverflowError):
            refused = cores
        if refused:
            raise OSError(errno.EINVAL, f"cpu_affinity: this process may not use the cores {sorted(refused)}")


def _cores(cpu_affinity: Iterable[int]) -> frozenset[int]:
    from manycore._launch.arguments import integer

    try:
        given = list(cpu_affinity)
    except TypeError:
        raise TypeError(f"cpu_affinity must be the numbers of cores, not {cpu_affinity!r}") from None
    if not given:
        raise ValueError("cpu_affinity must have at least one core")
    return frozenset(integer("a core of cpu_affinity", core, least=0) for core in given)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """A copy. Values are often secrets, so that no message shows them."""
    try:
        copy: dict[Any, Any] = dict(env)
    except (TypeError, ValueError):
        raise TypeError(f"env must be a mapping, not {type(env).__name__}") from None
    for name, value in copy.items():
        if not isinstance(name, str) or not isinstance(value, str):
            kinds = f"{type(name).__name__} to {type(value).__name__}"
            raise TypeError(f"env must map str to str, not {kinds} as at {name!r}")
    return copy


class BaseProcess(_std.BaseProcess):
    """A process of this program.

    A context's `Process` adds how it is started; that of `manycore.Process` is what `set_start_method` has set, which
    is "zygote" by default.

    Args:
        group: None; for likeness with `threading.Thread`.
        target: What `run` calls.
        name: Any text; shown in logs, in `repr` and in the process's title.
        args: For `target`.
        kwargs: For `target`.
        daemon: Whether the process is terminated when this one exits; else it is waited for. None takes
            the current process's own.
        result: Keep what `run` returns or raises, for `result()`.
        on_death: Called with this object, in a thread of manycore's, when the process has ended.
        nice: Added to the niceness.
        cpu_affinity: The cores that it may run on.
        memory_limit: Bytes of address space; an allocation beyond them raises `MemoryError` there.
        env: Its whole environment; None is this process's.
        cwd: The directory that it runs in; None is this process's.

    **If a process dies:** of a signal or otherwise, `exitcode` is true even if somebody else reaped it; when this
    process dies, its processes are gone within a second.
    """

    _method = ""  # the start method's name
    _tie: Tie | None = None
    _words: LastWords | None = None
    _outcome: Outcome | None = None
    _settings: _Settings | None = None
    _on_death: Callable[[Any], object] | None = None

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] = {},  # never written; the standard's default
        *,
        daemon: bool | None = None,
        result: bool = False,
        on_death: Callable[[Any], object] | None = None,
        nice: int | None = None,
        cpu_affinity: Iterable[int] | None = None,
        memory_limit: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> None:
        if target is not None and not callable(target):
            raise TypeError(f"target must be callable, not {target!r}")
        super().__init__(group, target, name, args, kwargs, daemon=daemon)
        if on_death is not None and not callable(on_death):
            raise TypeError(f"on_death must be callable, not {on_death!r}")
        self._on_death = on_death
        if any(setting is not None for setting in (nice, cpu_affinity, memory_limit, env, cwd)):
            self._settings = _Settings(nice, cpu_affinity, memory_limit, env, cwd)
        if result:
            from manycore._launch.outcome import Outcome

            self._outcome = Outcome()

    __init__.__qualname__ = "Process.__init__"  # as its callers know it, for messages

    def run(self) -> Any:
        """What the process does: call the target. A subclass may do something else."""
        if self._target:  # type: ignore[attr-defined]
            return self._target(*self._args, **self._kwargs)  # type: ignore[attr-defined]
        return None

    def start(self) -> None:
        """Start the process, and return when it runs.

        Raises:
            LaunchError: It could not be started.
            TaskPicklingError: With a start method that pickles: a part of this object cannot be.
        """
        self._check_closed()  # type: ignore[attr-defined]
        if self._popen is not None:
            raise AssertionError("cannot start a process twice")
        if self._parent_pid != os.getpid():  # type: ignore[attr-defined]
            raise AssertionError("can only start a process object created by current process")
        _std._cleanup()  # type: ignore[attr-defined]
        if self._method != "zygote":
            from manycore._launch.last_words import LastWords
            from manycore._launch.lifeline import Tie

            self._tie = Tie()
            self._words = LastWords()
        self._popen: Any = self._Popen(self)  # type: ignore[attr-defined]
        self._sentinel = self._popen.sentinel
        # The target may refer to this object: a cycle that would keep both until the next collection.
        del self._target, self._args, self._kwargs  # type: ignore[attr-defined]
        _std._children.add(self)  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state.pop("_on_death", None)
        return state

    # -- ending ------------------------------------------------------------------------------------------

    def terminate(self, grace: float | None = None) -> None:
        """Ask the process to end.

        Args:
            grace: None sends SIGTERM and returns, as the standard library does. A number of seconds waits
                that long for the end and then kills the process; the processes that it started go too.
        """
        self._check_started("terminate")
        if grace is None:
            self._popen.terminate()
        else:
            self._popen.end(grace)

    def kill(self) -> None:
        """End the process at once, by SIGKILL."""
        self._check_started("kill")
        self._popen.kill()

    def interrupt(self) -> None:
        """Send SIGINT, which raises `KeyboardInterrupt` in the process's main thread."""
        self._check_started("interrupt")
        self._popen.interrupt()

    # -- knowing -----------------------------------------------------------------------------------------

    @property
    def certificate(self) -> Certificate | None:
        """How the process ended, or None while it has not."""
        self._check_closed()  # type: ignore[attr-defined]
        return None if self._popen is None else self._popen.certificate()

    def result(self, timeout: float | None = None) -> Any:
        """What `run` returned, once it has; needs `result=True`.

        Args:
            timeout: Seconds to wait for the end of the process; None waits as long as it takes.

        Raises:
            TimeoutError: The process still runs.
            WorkerDied: The process ended without a result; the certificate says how.
            ResultPicklingError: The result could not be pickled.
            OSError: A setting could not be made: no such directory, a core or a niceness that it may not have.
            Exception: What `run` raised, with its traceback as the cause.
        """
        if self._outcome is None:
            raise ValueError(f"{self.name} keeps no result: it was made without result=True")
        self.join(timeout)
        from manycore import errors  # not before it waits: the interpreter swallows a Ctrl-C where it ends an import

        if self._popen.poll() is None:
            raise errors.TimeoutError(f"{self.name} (pid {self.pid}) still runs after {timeout} s")
        return self._outcome.claim(self.name, self._popen)

    def stack(self, timeout: float = 2.0) -> str:
        """The Python stacks of all its threads now, even while it is stuck in C.

        Args:
            timeout: Seconds to wait for the answer; a stopped process gives none.
        """
        self._check_started("stack")
        return stacks.read(self._popen.pid, timeout)

    def _check_started(self, what: str) -> None:
        self._check_closed()  # type: ignore[attr-defined]
        if self._popen is None:
            raise AttributeError(f"{what}() needs a process that was started")  # the standard library's, by accident

    # -- in the child ------------------------------------------------------------------------------------

    def _restore_start_method(self) -> None:
        """Set in this process the start method of the parent; a context knows how."""

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        self._restore_start_method()
        if self._tie is not None:
            self._tie.arm(at_once=self.daemon)
        if self._method != "zygote":  # whose children have it from their fork
            stacks.install()
            titles.show(titles.of_process(self))
            if self._words is not None:
                self._words.listen()
        run, stdin = self.run, sys.stdin
        if self._method == "zygote":  # whose children have /dev/null for it already
            sys.stdin = None
        self.run = lambda: self._run(run, stdin)  # type: ignore[method-assign]
        code: int = super()._bootstrap(parent_sentinel)  # type: ignore[misc]
        return code

    def _run(self, run: Callable[[], object], stdin: TextIO) -> None:
        del self.run  # the user's own again
        if sys.stdin is None:
            sys.stdin = stdin
        settings, outcome = self._settings, self._outcome
        if outcome is None:
            if settings is not None:
                settings.apply()
            run()
            return
        try:
            if settings is not None:
                settings.apply()
            outcome.put(run())
        except Exception as error:  # what is meant to end a process (SystemExit, KeyboardInterrupt) ends this one alone
            outcome.put_exception(error)
            sys.exit(1)
