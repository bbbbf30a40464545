"""Runs a rewritten suite, one child process a test class.

    runner                                   child (child.py)
    ids of a class            --file-->      unittest
    watchdog, tally           <--pipe--      start / end / fixture / done, a line each

A child that dies or goes silent costs the test that it was at: the rest of its class goes on in a new child. The
child's death is read from its pidfd and never from the pipe's end, which a process left behind may hold open. What a
class leaves behind is found by a mark in the environment, and ended.
"""

from __future__ import annotations

import fnmatch
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.suites import Suite

CHILD = Path(__file__).with_name("child.py")
EXPECTED = Path(__file__).with_name("expected.txt")
MARK = "MANYCORE_CONFORMANCE"
LISTING_S = 60.0
EXIT_S = 30.0  # from the last test's end to the child's exit: at-exit work of five pools
LEAVE_S = 3.0  # for helpers that go when their parent has gone


@dataclass(frozen=True)
class Result:
    """One test's end."""

    test: str  # Class.method
    outcome: str  # passed | skipped | failed
    text: str = ""
    seconds: float = 0.0

    @property
    def reason(self) -> str:
        """The last line that says anything."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""


@dataclass
class Report:
    """What became of a class or a whole suite."""

    results: list[Result] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, outcome: str) -> list[Result]:
        """The results with that outcome."""
        return [result for result in self.results if result.outcome == outcome]


def expected(start_method: str, version: tuple[int, int] = sys.version_info[:2]) -> dict[str, str]:
    """Patterns of `Class.method` that are not run, with their reasons (expected.txt).

    A line is `PATTERN [only] # reason`; `only` limits it to start methods or versions, e.g. `zygote,3.13`.
    """
    found = {}
    for line in EXPECTED.read_text().splitlines():
        rule, _, reason = line.partition("#")
        words = rule.split()
        if not words:
            continue
        if not reason.strip():
            raise ValueError(f"{EXPECTED.name}: no reason for {words[0]}")
        limits = words[1].split(",") if len(words) > 1 else []
        if not limits or start_method in limits or f"{version[0]}.{version[1]}" in limits:
            found[words[0]] = reason.strip()
    return found


def select(tests: dict[str, list[str]], patterns: list[str], without: dict[str, str]) -> dict[str, list[str]]:
    """The tests that match a pattern (all, if there is none) and none of those to leave out."""
    chosen: dict[str, list[str]] = {}
    for cls, methods in tests.items():
        for method in methods:
            name = f"{cls}.{method}"
            if patterns and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                continue
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in without):
                chosen.setdefault(cls, []).append(method)
    return chosen


def environment(suite: Suite, mark: str) -> dict[str, str]:
    """What a child runs under: the suite on its path, a temporary folder of its own, our mark."""
    temporary = suite.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "PYTHONPATH": str(suite.folder), "TMPDIR": str(temporary), MARK: mark}


def listing(suite: Suite) -> tuple[dict[str, list[str]], list[str]]:
    """The suite's classes and methods, and what was filled in for it to load."""
    done = subprocess.run(
        [sys.executable, str(CHILD), "list", suite.module],
        env=environment(suite, "listing"),
        capture_output=True,
        text=True,
        timeout=LISTING_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the suite does not load:\n{done.stderr[-4000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    tests = {cls: methods for cls, methods in answer["tests"].items() if cls.startswith(suite.prefix) and methods}
    return tests, answer["filled"]


def marked(mark: str) -> dict[int, str]:
    """Living processes that carry the mark."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
            if stat[stat.rindex(")") + 2] not in "ZX" and wanted in Path(f"/proc/{entry}/environ").read_bytes().split(
                b"\0"
            ):
                command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry)] = command.strip()[:160]
        except OSError:
            continue
    return found


def end_marked(mark: str, grace: float) -> list[str]:
    """Waits for them to go, then kills; returns who had to be killed."""
    deadline = time.monotonic() + grace
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return list(left.values())


def run_class(suite: Suite, cls: str, methods: list[str], silence: float) -> Report:
    """Runs the methods of one class; `silence` is how long, in seconds, a test may go on without an event."""
    report = Report()
    started = time.monotonic()
    pending = list(methods)
    while pending:
        _run_child(suite, cls, pending, silence, report)
    report.seconds = time.monotonic() - started
    return report


def _run_child(suite: Suite, cls: str, pending: list[str], silence: float, report: Report) -> None:
    """One child's life; takes from `pending` what it settles, at least one."""
    mark = uuid.uuid4().hex
    scratch = Path(tempfile.mkdtemp(dir=suite.folder, prefix="run-"))
    ids = scratch / "ids.json"
    ids.write_text(json.dumps([[cls, method] for method in pending]))
    reader, writer = os.pipe()
    with (scratch / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, str(CHILD), "run", suite.module, str(writer), str(ids)],
            env=environment(suite, mark),
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
        )
    os.close(writer)
    pidfd = os.pidfd_open(child.pid)
    os.set_blocking(reader, False)
    current = ""
    fixtures: list[str] = []
    skipped = done = False
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        selector.register(pidfd, selectors.EVENT_READ)
        exited = silent = False
        while not exited:
            ready = selector.select(EXIT_S if done else silence)
            silent = not ready
            exited = silent or any(key.fd == pidfd for key, _ in ready)
            try:
                rest += os.read(reader, 1 << 20)
            except BlockingIOError:
                pass
            *lines, rest = rest.split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "start":
                    current = event["test"]
                elif event["event"] == "end":
                    current = ""
                    pending.remove(event["test"])
                    name = f"{cls}.{event['test']}"
                    report.results.append(Result(name, event["outcome"], event["text"], event["seconds"]))
                elif event["event"] == "fixture":
                    fixtures.append(f"{event['test']}: {event['text']}")
                    skipped = event["outcome"] == "skipped"
                else:
                    done = True
    if silent:
        end_marked(mark, 0)
    status = child.wait()
    os.close(pidfd)
    os.close(reader)
    report.left_behind += [] if silent else end_marked(mark, LEAVE_S)
    how = "no event for too long: ended" if silent else f"exit status {status}"
    tail = (scratch / "log").read_bytes()[-3000:].decode(errors="replace")
    if not done:
        lost = [current] if current else list(pending)
        where = "in this test" if current else "before any test"
        text = "\n".join([tail, *fixtures, f"{how} {where}"])
    else:
        lost = list(pending)  # setUpClass or setUpModule failed or skipped
        text = "\n".join(fixtures) or "never ran"
        if silent or status:
            report.results.append(Result(f"{cls}.<exit>", "failed", f"{tail}\n{how} after the last test"))
    for method in lost:
        pending.remove(method)
        report.results.append(Result(f"{cls}.{method}", "skipped" if skipped and done else "failed", text))
