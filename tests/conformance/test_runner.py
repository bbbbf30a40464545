"""The runner itself: what it says of tests that pass, fail, crash, hang and leave processes behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import runner
from tests.conformance.suites import PREPARE, Suite

SUITE = """
import os, signal, subprocess, sys, time, unittest
import conformance_prepare

class Plain(unittest.TestCase):
    def test_fails(self): self.fail("on purpose")
    def test_passes(self): pass
    def test_skips(self): self.skipTest("not here")
    def test_subtest_fails(self):
        with self.subTest(n=1): self.fail("inside")

class Crash(unittest.TestCase):
    def test_1(self): pass
    def test_2(self): os.kill(os.getpid(), signal.SIGKILL)
    def test_3(self): pass

class Hang(unittest.TestCase):
    def test_1(self): pass
    def test_2(self): signal.pause()
    def test_3(self): pass

class Leaves(unittest.TestCase):
    def test_1(self): subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])

class NoFixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise OSError("no fixture")
    def test_1(self): pass
    def test_2(self): pass

class Skipped(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("not on this machine")
    def test_1(self): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / f"{PREPARE}.py").write_text("FILLED = ['pool.py']\n")
    (tmp_path / "small.py").write_text(SUITE)
    return Suite("small", tmp_path, "small")


def outcomes(report: runner.Report) -> dict[str, str]:
    return {result.test.partition(".")[2]: result.outcome for result in report.results}


def run(suite: Suite, cls: str, silence: float = 20.0) -> runner.Report:
    tests, _ = runner.listing(suite)
    return runner.run_class(suite, cls, tests[cls], silence)


def test_listing_names_classes_and_what_was_filled_in(suite: Suite) -> None:
    tests, filled = runner.listing(suite)
    assert tests["Crash"] == ["test_1", "test_2", "test_3"]
    assert filled == ["pool.py"]


def test_outcomes(suite: Suite) -> None:
    report = run(suite, "Plain")
    assert outcomes(report) == {
        "test_fails": "failed",
        "test_passes": "passed",
        "test_skips": "skipped",
        "test_subtest_fails": "failed",
    }
    assert "on purpose" in report.of("failed")[0].reason


def test_a_crash_costs_one_test(suite: Suite) -> None:
    report = run(suite, "Crash")
    assert outcomes(report) == {"test_1": "passed", "test_2": "failed", "test_3": "passed"}
    assert "exit status -9 in this test" in report.of("failed")[0].text


def test_a_hang_costs_one_test(suite: Suite) -> None:
    report = run(suite, "Hang", silence=2.0)
    assert outcomes(report) == {"test_1": "passed", "test_2": "failed", "test_3": "passed"}
    assert "no event for too long" in report.of("failed")[0].text


def test_what_is_left_behind_is_named_and_ended(suite: Suite) -> None:
    report = run(suite, "Leaves")
    assert outcomes(report) == {"test_1": "passed"}
    assert len(report.left_behind) == 1
    assert "signal.pause" in report.left_behind[0]


def test_a_broken_fixture_fails_its_tests_and_a_skipping_one_skips_them(suite: Suite) -> None:
    assert outcomes(run(suite, "NoFixture")) == {"test_1": "failed", "test_2": "failed"}
    assert outcomes(run(suite, "Skipped")) == {"test_1": "skipped"}


def test_the_list_of_exceptions_has_a_reason_for_each_and_honours_its_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all(runner.expected("zygote").values())
    monkeypatch.setattr(runner, "EXPECTED", tmp_path / "expected.txt")
    runner.EXPECTED.write_text("A.* # always\nB.* zygote,3.13 # sometimes\n")
    assert set(runner.expected("fork", (3, 11))) == {"A.*"}
    assert set(runner.expected("zygote", (3, 11))) == {"A.*", "B.*"}
    assert set(runner.expected("fork", (3, 13))) == {"A.*", "B.*"}
    runner.EXPECTED.write_text("A.*\n")
    with pytest.raises(ValueError, match="no reason"):
        runner.expected("fork")


def test_selection() -> None:
    tests = {"A": ["test_1", "test_2"], "B": ["test_1"]}
    assert runner.select(tests, [], {}) == tests
    assert runner.select(tests, ["*.test_1"], {"B.*": "no"}) == {"A": ["test_1"]}
