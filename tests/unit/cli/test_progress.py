"""Progress: what is counted, and what each kind of display shows."""

import io
import os
import pty
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from manycore._observe import progress as module
from manycore._observe.progress import Progress, Reporter, start_progress


def started(progress: bool | str | Callable[[Progress], object], **options: Any) -> Reporter:
    reporter = start_progress(progress, **options)
    assert reporter is not None
    return reporter


def test_nothing_is_asked_for_and_nothing_is_started() -> None:
    before = threading.active_count()
    assert start_progress(None) is None
    assert start_progress(False) is None
    assert threading.active_count() == before


def test_a_callable_gets_snapshots_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CALL_INTERVAL_S", 0.0)
    seen: list[Progress] = []
    with started(seen.append, total=3, status=lambda: (2, 5)) as reporter:
        for number in range(3):
            reporter.advance(1, number == 1)
    assert [snapshot.done for snapshot in seen] == [1, 2, 3, 3]
    last = seen[-1]
    assert (last.failed, last.total, last.workers, last.busy, last.finished) == (1, 3, 2, 2, True)
    assert last.remaining == 0


def test_the_time_left_follows_from_the_rate() -> None:
    with started(lambda _: None, total=100) as reporter:
        reporter._started -= 10.0
        reporter._samples[0] = (reporter._started, 0)
        reporter.advance(25)
        snapshot = reporter.snapshot()
        assert snapshot.rate == pytest.approx(2.5, rel=0.05)
        assert snapshot.remaining == pytest.approx(30, rel=0.05)
        assert snapshot.elapsed == pytest.approx(10, rel=0.05)


def test_a_total_that_was_too_small_grows() -> None:
    with started(lambda _: None, total=lambda: 5) as reporter:
        reporter.advance(8)
        assert reporter.snapshot().total == 8


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(module._Lines, "first_s", 0.0)
    monkeypatch.setattr(module._Lines, "interval_s", 0.01)
    written = threading.Event()
    show = module._Lines.show

    def show_and_tell(self: module._Lines, progress: Progress) -> None:
        show(self, progress)
        if progress.done:
            written.set()

    monkeypatch.setattr(module._Lines, "show", show_and_tell)
    with started("resize", total=2000, status=lambda: (4, 3)) as reporter:
        reporter.advance(1000, 2)
        assert written.wait(10)
    line = log.getvalue().splitlines()[-1]
    assert line.startswith("resize: 1,000/2,000, 2 failed, ")
    assert line.endswith("/s, 3 of 4 busy")


@pytest.mark.parametrize(("columns", "has_bar"), [(120, True), (30, False)])
def test_a_terminal_gets_one_line_that_fits(monkeypatch: pytest.MonkeyPatch, columns: int, has_bar: bool) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(module._TerminalBar, "first_s", 0.0)
    reader, terminal = pty.openpty()
    with open(terminal, "w", encoding="utf-8") as stderr, open(reader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stderr)
        with started("files", total=300, transient=True) as reporter:
            reporter.advance(150)
            shown = b""
            while b"150" not in shown:
                shown += screen.read(4096)
            with reporter.above():
                os.write(terminal, b"above\n")
        stderr.flush()
        while b"above" not in shown:
            shown += screen.read(4096)
    text = shown.decode()
    assert "files  150/300" in text
    assert ("━" in text) == has_bar
    assert "\r\x1b[2Kabove" in text


def test_a_notebook_gets_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, str]] = []

    class Handle:
        def update(self, data: dict[str, str], *, raw: bool) -> None:
            shown.append(data)

    def display(data: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        assert not shown
        shown.append(data)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    monkeypatch.setattr(module._NotebookBar, "first_s", 0.0)
    with started("<b>", total=4) as reporter:
        while not shown:
            time.sleep(0.001)
        reporter.advance(4)
    assert shown[-1]["text/plain"].startswith("<b>  4/4")
    assert shown[-1]["text/html"].startswith('<progress value="4" max="4"')
    assert "&lt;b&gt;" in shown[-1]["text/html"]


def test_a_terminal_that_has_gone_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Lines, "first_s", 0.0)

    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with started(True, total=1) as reporter:
        reporter.advance()
