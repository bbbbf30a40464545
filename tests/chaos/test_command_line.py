"""`manycore map` when things go wrong from outside: Ctrl-C, SIGTERM, a killed worker, a killed parent, much input."""

import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import cases
from tests.unit.cli.command import Command, run, started

ENDS_WITHIN_S = 2.0  # after Ctrl-C, with all its processes
PARENT_BYTES = 300e6  # over a million lines

WORK = """
import os, signal, time

def square(text): return int(text) ** 2
def tell_and_wait(text):
    if text == "wait":
        with open("pid", "w") as fifo: fifo.write(str(os.getpid()))
        signal.pause()
    return os.path.basename(text)
def tick_and_wait(text):
    if text != "wait":
        with open("ticks", "a") as ticks: ticks.write(".")
    return tell_and_wait(text)
def stubborn(text):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open("pid", "w") as fifo: fifo.write(str(os.getpid()))
    any(iter(int, 1))
def nap(text):
    time.sleep(float(text))
    return text
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("work.py").write_text(WORK)
    os.mkfifo("pid")
    return tmp_path


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def the_waiting_worker() -> int:
    return int(Path("pid").read_text())


def ended_in_time(command: Command, since: float) -> tuple[str, str]:
    out, err = command.process.communicate(timeout=30)
    assert time.monotonic() - since < ENDS_WITHIN_S
    assert command.nothing_left()
    return out.decode() if out else "", err.decode()


def test_a_killed_worker_fails_one_item_and_the_rest_is_finished(folder: Path) -> None:
    (folder / "files").mkdir()
    for number in range(1000):
        (folder / "files" / f"{number:04}").write_text("x")
    items = sorted(str(path) for path in Path("files").iterdir())
    items[500] = "wait"
    with started("map", "work.py:tell_and_wait", "-", "--items", "files", "-j", "2", stdin=subprocess.PIPE) as command:
        assert command.process.stdin is not None
        command.process.stdin.write("\n".join(items).encode())
        command.process.stdin.close()
        command.process.stdin = None
        os.kill(the_waiting_worker(), signal.SIGKILL)
        out, err = command.process.communicate(timeout=30)
        assert command.nothing_left()
    found = records(out.decode())
    assert command.process.returncode == 1
    assert [record["index"] for record in found] == list(range(1000))
    failed = [record for record in found if "error" in record]
    assert [(record["index"], record["error"]["type"]) for record in failed] == [(500, "WorkerDied")]
    assert "SIGKILL" in failed[0]["error"]["message"]
    assert all(record["result"] == Path(record["item"]).name for record in found if "error" not in record)
    assert b"1,000 items: 999 succeeded, 1 failed\n" in err


@pytest.mark.parametrize("to_file", [True, False])
def test_ctrl_c_keeps_what_was_finished(to_file: bool) -> None:
    lines = [str(number) for number in range(200)] + ["wait"]
    Path("lines").write_text("\n".join(lines))
    options = ["-o", "out.jsonl"] if to_file else []
    with started("map", "work.py:tick_and_wait", "lines", "-j", "2", *options) as command:
        the_waiting_worker()
        assert cases.wait_until(lambda: Path("ticks").stat().st_size == 200, 30.0)
        since = time.monotonic()
        command.interrupt()
        out, err = ended_in_time(command, since)
    assert command.process.returncode == 130
    assert len(err.splitlines()) == 1
    assert err.startswith("manycore: interrupted; ")
    assert not Path("out.jsonl").exists()
    if to_file:
        assert "kept in out.jsonl.partial" in err
        out = Path("out.jsonl.partial").read_text()
    found = records(out)
    assert all(record["result"] == record["item"] for record in found)
    assert len(found) >= 198  # all but what the two workers may have had in hand


@pytest.mark.parametrize("signals", [1, 3])
def test_ctrl_c_ends_workers_that_do_not_listen(signals: int) -> None:
    with started("map", "work.py:stubborn", "-", stdin=subprocess.PIPE) as command:
        assert command.process.stdin is not None
        command.process.stdin.write(b"x\n")
        command.process.stdin.close()
        command.process.stdin = None
        the_waiting_worker()
        since = time.monotonic()
        for _ in range(signals):
            command.interrupt()
        _, err = ended_in_time(command, since)
    assert command.process.returncode == 130
    assert len(err.splitlines()) == 1


def test_ctrl_c_while_waiting_for_input() -> None:
    with started("map", "work.py:square", "-", stdin=subprocess.PIPE) as command:
        assert command.process.stdin is not None
        command.process.stdin.write(b"".join(b"%d\n" % number for number in range(1000)))
        command.process.stdin.flush()
        assert command.process.stdout is not None
        assert json.loads(command.process.stdout.readline())["result"] == 0
        source, command.process.stdin = command.process.stdin, None  # stays open: the command waits for more
        since = time.monotonic()
        command.interrupt()
        ended_in_time(command, since)
        source.close()
    assert command.process.returncode == 130


def test_ctrl_c_while_nobody_reads_the_results() -> None:
    with open("lines", "w", encoding="ascii") as file:
        file.writelines(f"{number}\n" for number in range(1_000_000))
    reader, writer = os.pipe()
    with started("map", "work.py:square", "lines", stdout=writer) as command:
        while takes_more(writer):
            time.sleep(0.01)
        since = time.monotonic()
        command.interrupt()
        ended_in_time(command, since)
    os.close(reader)
    os.close(writer)
    assert command.process.returncode == 130


def takes_more(pipe: int) -> bool:
    """Whether a write to a pipe would not block: it may be full with few bytes, as each write may take a page."""
    _, writable, _ = select.select([], [pipe], [], 0)
    return bool(writable)


def test_sigterm_is_as_orderly_as_ctrl_c() -> None:
    Path("lines").write_text("a\nwait\n")
    with started("map", "work.py:tell_and_wait", "lines", "-o", "out.jsonl") as command:
        the_waiting_worker()
        while not Path("out.jsonl.partial").stat().st_size:
            time.sleep(0.01)
        since = time.monotonic()
        command.process.terminate()
        _, err = ended_in_time(command, since)
    assert command.process.returncode == 143
    assert err.startswith("manycore: terminated; ")
    assert records(Path("out.jsonl.partial").read_text()) == [{"index": 0, "item": "a", "result": "a"}]


def test_a_killed_command_leaves_no_process_and_no_half_file() -> None:
    Path("out.jsonl").write_text("the old one\n")
    Path("lines").write_text("a\nwait\n")
    with started("map", "work.py:tell_and_wait", "lines", "-o", "out.jsonl") as command:
        the_waiting_worker()
        assert command.others()
        command.process.kill()
        command.process.wait()
        assert command.nothing_left()
    assert Path("out.jsonl").read_text() == "the old one\n"
    Path("lines").write_text("a\nb\n")
    assert run("map", "work.py:tell_and_wait", "lines", "-o", "out.jsonl").status == 0
    assert len(records(Path("out.jsonl").read_text())) == 2


@pytest.mark.timeout(180)
def test_a_million_lines_in_bounded_memory() -> None:
    with open("lines", "w", encoding="ascii") as file:
        file.writelines(f"{number}\n" for number in range(1_000_000))
    with started("map", "work.py:square", "lines", "-o", "out.jsonl", "-j", "2") as command:
        _, status, usage = os.wait4(command.process.pid, 0)
        command.process.returncode = os.waitstatus_to_exitcode(status)
        assert command.nothing_left()
        assert command.process.stderr is not None
        err = command.process.stderr.read().decode()
    assert command.process.returncode == 0, err
    assert usage.ru_maxrss * 1024 < PARENT_BYTES
    count = 0
    with open("out.jsonl", encoding="ascii") as file:
        for count, line in enumerate(file, 1):
            if count % 50_000 == 0:
                assert json.loads(line) == {"index": count - 1, "item": str(count - 1), "result": (count - 1) ** 2}
    assert count == 1_000_000


@pytest.mark.timeout(180)
def test_a_slow_first_item_holds_back_neither_workers_nor_memory() -> None:
    with open("lines", "w", encoding="ascii") as file:
        file.write("2\n")
        file.writelines("0\n" for _ in range(50_000))
    with started("map", "work.py:nap", "lines", "-j", "2", stdout=subprocess.DEVNULL) as command:
        _, status, usage = os.wait4(command.process.pid, 0)
        command.process.returncode = os.waitstatus_to_exitcode(status)
    assert command.process.returncode == 0
    assert usage.ru_maxrss * 1024 < PARENT_BYTES
