"""What every test runs under.

    a hard limit      60 s a test, or @pytest.mark.timeout(seconds): every thread's stack and the tree of processes
                      are printed and the test fails; if the main thread cannot even be interrupted, ten seconds
                      later faulthandler prints the stacks again and ends the session
    nothing left      when the session ends, no process that it started, directly or not, is alive, nothing is
                      left in /dev/shm, and no descriptor to shared memory, a pidfd or a socket has piled up
    a seed            random choices come from the fixture `rng`; its seed stands in the header and in each failure,
                      and MANYCORE_TEST_SEED=N repeats it, for hypothesis too

Warnings are errors (pyproject.toml).
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import FrameType, ModuleType

import pytest

LIMIT_S = 60.0  # long enough for any test on a loaded machine; a hang costs this much
LAST_RESORT_S = 10.0  # after the limit, for a main thread that never gets back to the interpreter
LEAVE_S = 10.0  # how long processes may take to go once the session is over
# What a process keeps for its life: the zygote's socket, epoll, a few segments of cells, the pipes of the standard
# library's resource tracker and fork server, the lifeline of processes by the standard methods, bells of event loops.
DESCRIPTOR_SLACK = 24

SEED = int(os.environ.get("MANYCORE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
MARK = "MANYCORE_TEST_SESSION"  # in the environment of all that this session starts, orphans included
os.environ[MARK] = uuid.uuid4().hex

try:
    import hypothesis
    from hypothesis import core as hypothesis_core
except ImportError:
    pass
else:
    hypothesis.settings.register_profile("manycore", deadline=None, print_blob=True, database=None)
    hypothesis.settings.load_profile("manycore")
    hypothesis_core.global_force_seed = SEED  # type: ignore[assignment]  # its inferred type is that of its default


def pytest_report_header() -> list[str]:
    """Says what is tested and how to repeat it."""
    import manycore

    return [
        f"manycore {manycore.__version__} from {Path(manycore.__file__).parent}",
        f"seed: MANYCORE_TEST_SEED={SEED}",
    ]


_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the real standard error, for stacks that must be seen while output is captured."""
    config.stash[_STDERR] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Gives it back."""
    os.close(config.stash[_STDERR])


@pytest.fixture(scope="session")
def seed() -> int:
    """The session's seed, for programs that a test starts."""
    return SEED


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random choices of this test: the same for the same seed, whichever other tests run."""
    return random.Random(f"{SEED}:{request.node.nodeid}")


# ------------------------------------------------------------------------------------------ processes


def processes_of_this_session() -> dict[int, str]:
    """Living processes other than this one that carry this session's mark, with what `ps` would say."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        folder = Path("/proc") / entry
        try:
            stat = (folder / "stat").read_text()
            state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (OSError, ValueError):
            continue  # gone, or not ours
        ours = int(parent) == os.getpid()
        if (marked and state != "Z") or (ours and state == "Z"):
            found[int(entry)] = f"state {state}, parent {parent}: {command[:150] or '(zombie)'}"
    return found


def close_what_lives_as_long_as_the_process() -> None:
    """Ends the zygote, and closes the bells that are kept for later: both are meant to live until the process exits."""
    bells: ModuleType | None = sys.modules.get("manycore._memory.bells")
    if bells is not None:
        bells.drop_idle()
    launch: ModuleType | None = sys.modules.get("manycore._launch")
    shutdown = getattr(launch, "shutdown", None)
    gc.collect()
    if shutdown is not None:
        shutdown()
    gc.collect()


def descriptors() -> Counter[str]:
    """How many descriptors of each kind are open, of the kinds that a library beneath could leak."""
    kinds: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        kind = target.partition(":[")[0].partition(" ")[0]
        if kind.startswith(("/memfd:", "anon_inode:", "socket", "pipe", "/dev/shm")):
            kinds[kind] += 1
    return kinds


def shared_memory_files() -> set[str]:
    """Names in /dev/shm that belong to this user."""
    names = set()
    for entry in os.scandir("/dev/shm"):
        try:
            if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                names.add(entry.name)
        except FileNotFoundError:
            continue
    return names


_before_fds = descriptors()
_before_shm = shared_memory_files()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the session for whatever it left behind."""
    if hasattr(session.config, "workerinput"):  # a worker of a distributed run: its main process looks
        return
    close_what_lives_as_long_as_the_process()
    deadline = time.monotonic() + LEAVE_S
    while (left := processes_of_this_session()) and time.monotonic() < deadline:
        time.sleep(0.05)
    complaints = [f"process {pid} is still there: {what}" for pid, what in left.items()]
    complaints += [f"/dev/shm/{name} is still there" for name in sorted(shared_memory_files() - _before_shm)]
    grown = descriptors() - _before_fds
    if grown.total() > DESCRIPTOR_SLACK:
        kinds = ", ".join(f"{count} {kind}" for kind, count in grown.most_common())
        complaints.append(f"{grown.total()} descriptors more than at the start: {kinds}")
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if complaints:
        session.config.stash[_LEFT] = complaints
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_LEFT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what was left behind."""
    complaints = config.stash.get(_LEFT, [])
    if complaints:
        terminalreporter.section("left behind by the session", red=True)
        for line in complaints:
            terminalreporter.line(line)


# ------------------------------------------------------------------------------------------- the limit


class TestTookTooLong(BaseException):
    """Raised in the test's thread at its limit; not an Exception, so that no `except Exception` swallows it."""

    __test__ = False


def _stacks(item: pytest.Item, seconds: float) -> None:
    fd = item.config.stash[_STDERR]
    os.write(fd, f"\n{item.nodeid} passed its limit of {seconds:g} s; all threads:\n".encode())
    faulthandler.dump_traceback(fd, all_threads=True)
    for pid, what in processes_of_this_session().items():
        try:
            where = Path(f"/proc/{pid}/wchan").read_text()
        except OSError:
            where = "?"
        os.write(fd, f"  process {pid}, waits in {where}, {what}\n".encode())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Bounds the whole of a test: fixtures, body and teardown."""
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0]) if marker else LIMIT_S

    def on_alarm(_signum: int, _frame: FrameType | None) -> None:
        _stacks(item, seconds)
        raise TestTookTooLong(f"took longer than {seconds:g} s; the stacks are on standard error")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + LAST_RESORT_S, exit=True, file=item.config.stash[_STDERR])
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the seed to a failure's report."""
    report = yield
    if report.failed:
        report.sections.append(("seed", f"MANYCORE_TEST_SEED={SEED} repeats the random choices of {item.nodeid}"))
    return report
