"""Runs test methods of one module and writes an event a line to a descriptor.

    child.py list MODULE              one line: {"tests": {class: [method, ...]}, "filled": [...]}
    child.py run MODULE FD IDS        IDS is a JSON file [[class, method], ...]

A script and not part of a package: children that the tests spawn import it again as `__mp_main__`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import unittest
from pathlib import Path
from typing import Any

RANK = {"passed": 0, "skipped": 1, "failed": 2}


class Reporter(unittest.TestResult):
    """Writes an event when a test starts, when it ends, and when a fixture fails."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = fd
        self.pid = os.getpid()
        self.current = ""
        self.outcome = "passed"
        self.text = ""
        self.started = 0.0

    def emit(self, event: str, **more: object) -> None:
        if os.getpid() == self.pid:  # not from a forked child that got away from its test
            os.write(self.fd, json.dumps({"event": event, **more}).encode() + b"\n")

    def note(self, test: Any, outcome: str, text: str = "") -> None:
        if test.id() != self.current:  # setUpModule, setUpClass and their counterparts
            self.emit("fixture", test=test.id(), outcome=outcome, text=text)
        elif RANK[outcome] > RANK[self.outcome]:
            self.outcome, self.text = outcome, text

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self.current, self.outcome, self.text, self.started = test.id(), "passed", "", time.monotonic()
        self.emit("start", test=test._testMethodName)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        seconds = round(time.monotonic() - self.started, 3)
        self.emit("end", test=test._testMethodName, outcome=self.outcome, text=self.text, seconds=seconds)
        self.current = ""

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self.note(test, "failed", "".join(traceback.format_exception(*err))[-4000:])

    addFailure = addError  # noqa: N815

    def addSubTest(self, test: unittest.TestCase, _subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self.note(test, "skipped", reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.note(test, "failed", "unexpected success")


def main(mode: str, module_name: str, *rest: str) -> None:
    """Lists or runs."""
    module = importlib.import_module(module_name)
    if mode == "list":
        tests = {
            name: unittest.defaultTestLoader.getTestCaseNames(value)
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and value is not unittest.TestCase
        }
        filled = sys.modules["conformance_prepare"].FILLED
        print("\n" + json.dumps({"tests": tests, "filled": filled}))
        return
    fd = int(rest[0])
    os.set_inheritable(fd, False)
    reporter = Reporter(fd)
    ids = json.loads(Path(rest[1]).read_text())
    suite = unittest.TestSuite(getattr(module, cls)(method) for cls, method in ids)
    # The module's own setUpModule is looked up where the class says it lives.
    suite.run(reporter)
    reporter.emit("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
