"""`manycore map`, run for real."""

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.command import Ended, run, shell, started

WORK = """
import dataclasses, os, signal, sys, time

def size(path): return os.path.getsize(path)
def square(text): return int(text) ** 2
def same(value): return value
def late_first(text):
    if text != "0": open(f"seen by {os.getpid()}", "w").close()
    while text == "0" and not any(n.startswith("seen by") and n != f"seen by {os.getpid()}" for n in os.listdir()):
        time.sleep(0.001)
    return os.getpid()
def after_a_result(text):
    while text == "0" and not os.path.getsize("found"): time.sleep(0.001)
def odd_fails(text):
    if int(text) % 2: raise ValueError(f"{text} is odd")
    return int(text)
def talk(text):
    print("hello from", text)
    return sys.stdin.read()
def opaque(text): return {"model": [object()]}
def leave(text): sys.exit(3)
class Odd(Exception):
    def __init__(self, a, b): super().__init__(a)
def oddly(text): raise Odd(1, object())
def grumble(text, more): pass
def stop(text): raise KeyboardInterrupt
def vanish(text): os._exit(5)
def nap(text):
    time.sleep(float(text))
    return text
def flaky(path):
    with open(path, "a") as file: file.write("x")
    if os.path.getsize(path) < 3: raise OSError("not yet")
    return os.path.getsize(path)
def pid(text): return os.getpid()
def preloaded(text): return "mc_heavy" in sys.modules
@dataclasses.dataclass
class Point:
    x: str
class Maker:
    @classmethod
    def make(cls, text): return Point(text)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("work.py").write_text(WORK)
    return tmp_path


def numbers(count: int) -> str:
    Path("numbers.txt").write_text("".join(f"{number}\n" for number in range(count)))
    return "numbers.txt"


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def one_line(ended: Ended, message: str, status: int) -> None:
    assert ended.status == status, ended
    assert len(ended.lines) == 1, ended.err
    assert message in ended.lines[0]


def test_a_thousand_real_files(folder: Path) -> None:
    for number in range(1000):
        path = folder / "files" / f"{number % 10}" / f"{number:04}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
    ended = run("map", "work.py:size", "files", "-o", "out.jsonl")
    assert ended.status == 0, ended.err
    assert ended.out == ""
    found = records(Path("out.jsonl").read_text())
    assert [record["index"] for record in found] == list(range(1000))
    assert [record["item"] for record in found] == sorted(str(path) for path in Path("files").rglob("*.txt"))
    assert all(record["result"] == int(Path(record["item"]).stem) for record in found)
    assert ended.lines[0] == "1,000 items: all succeeded"
    assert re.match(
        r"wall time [\d.]+ s, worker time [\d.]+ s by \d+ workers?, speed-up over one core [\d.]+x$", ended.lines[1]
    )
    assert re.match(r"peak memory [\d,]+ MB here, \d+ MB in the largest worker$", ended.lines[2])


def test_results_come_in_the_order_of_the_items() -> None:
    ended = run("map", "work.py:late_first", numbers(200), "-j", "2")
    assert [record["item"] for record in records(ended.out)] == [str(number) for number in range(200)]
    assert len({record["result"] for record in records(ended.out)}) == 2


def test_unordered_results_come_as_they_are_done() -> None:
    ended = shell(f"manycore map work.py:after_a_result {numbers(200)} -j 2 --unordered > found")
    found = records(Path("found").read_text())
    assert sorted(record["index"] for record in found) == list(range(200)), ended
    assert found[0]["index"] != 0


@pytest.mark.parametrize("function", ["work.py:Maker.make", "work:Maker.make", "./work.py:Point"])
def test_functions_by_file_module_and_attribute(function: str) -> None:
    ended = run("map", function, "-", input="a\n")
    assert ended.out == '{"index": 0, "item": "a", "result": {"x": "a"}}\n'


def test_a_file_that_is_named_as_a_standard_module() -> None:
    Path("json.py").write_text("def work(text): return text * 2")
    ended = run("map", "json.py:work", "-", input="a\n")
    assert ended.out == '{"index": 0, "item": "a", "result": "aa"}\n'


def test_python_m_is_the_same_command() -> None:
    ended = shell("printf '2\\n3\\n' | python -m manycore map work.py:square")
    assert [record["result"] for record in records(ended.out.rpartition("\n0")[0])] == [4, 9]


def test_json_lines_and_csv() -> None:
    ended = run("map", "work.py:same", "--items", "jsonl", input='{"a":  [1]}\n\n"ü"\n')
    assert (
        ended.out
        == '{"index": 0, "item": {"a":  [1]}, "result": {"a": [1]}}\n{"index": 1, "item": "ü", "result": "ü"}\n'
    )
    ended = run("map", "work.py:same", "--items", "csv", input='n,t\n1,"x, y"\n')
    assert records(ended.out) == [{"index": 0, "item": {"n": "1", "t": "x, y"}, "result": {"n": "1", "t": "x, y"}}]


def test_failed_items_are_collected_and_told() -> None:
    ended = run("map", "work.py:odd_fails", numbers(4))
    assert ended.status == 1
    found = records(ended.out)
    assert [record.get("result") for record in found] == [0, None, 2, None]
    error = found[1]["error"]
    assert (error["type"], error["message"]) == ("ValueError", "1 is odd")
    assert "work.py" in error["traceback"]
    assert "/manycore/" not in error["traceback"]
    assert "failed: item 1 (numbers.txt line 2): ValueError: 1 is odd" in ended.lines
    assert ended.lines[-3] == "4 items: 2 succeeded, 2 failed"


def test_many_failures_are_told_in_few_lines() -> None:
    ended = run("map", "work.py:odd_fails", numbers(100), "--on-error", "skip")
    assert ended.status == 1
    assert [record["index"] for record in records(ended.out)] == list(range(0, 100, 2))
    assert "failed: 40 more" in ended.lines
    assert sum(line.startswith("failed: item ") for line in ended.lines) == 10


def test_stop_ends_at_the_first_failure_and_keeps_what_was_finished() -> None:
    fails_at = 200  # far enough behind the first item that some are finished, whichever worker has which
    Path("most.txt").write_text("\n".join(str(2 * n + (n == fails_at)) for n in range(100_000)))
    ended = run("map", "work.py:odd_fails", "most.txt", "--on-error", "stop", "-o", "out.jsonl")
    one_line(ended, "ValueError: ", 1)
    assert not Path("out.jsonl").exists()
    kept = records(Path("out.jsonl.partial").read_text())
    assert f"is odd; stopped, {len(kept):,} items finished, kept in out.jsonl.partial" in ended.err
    assert 0 < len(kept) < 50_000
    for record in kept:
        assert record == {"index": record["index"], "item": str(2 * record["index"]), "result": 2 * record["index"]}


@pytest.mark.parametrize(
    ("function", "kind", "message"),
    [
        ("opaque", "NotJSON", "the result['model'][0] is of type object, which JSON cannot hold"),
        ("leave", "SystemExit", "3"),
        ("oddly", "Odd", "1"),
        ("grumble", "TypeError", "missing 1 required positional argument: 'more'"),
        ("stop", "KeyboardInterrupt", ""),
        ("vanish", "WorkerDied", "exit code 5"),
    ],
)
def test_what_a_task_may_do_fails_its_item_alone(function: str, kind: str, message: str) -> None:
    ended = run("map", f"work.py:{function}", "-", input="a\nb\n")
    assert ended.status == 1
    errors = [record["error"] for record in records(ended.out)]
    assert [error["type"] for error in errors] == [kind, kind]
    assert message in errors[0]["message"]
    assert "Traceback" not in ended.err


def test_a_line_that_is_not_json_is_named_by_its_number() -> None:
    Path("data.jsonl").write_text('1\n\n{"a" 2}\n3\n')
    ended = run("map", "work.py:same", "data.jsonl", "--items", "jsonl")
    assert ended.status == 1
    assert (
        ended.lines[0]
        == "failed: item 1 (data.jsonl line 3): InputError: not JSON: Expecting ':' delimiter at column 6"
    )
    assert records(ended.out)[1]["item"] == '{"a" 2}'
    assert [record["index"] for record in records(ended.out)] == [0, 1, 2]
    ended = run("map", "work.py:same", "data.jsonl", "--items", "jsonl", "--on-error", "stop")
    one_line(ended, "data.jsonl line 3", 1)


def test_a_timeout_fails_the_slow_item() -> None:
    ended = run("map", "work.py:nap", "-", "--timeout", "0.5", input="30\n0\n")
    assert ended.status == 1
    assert [record.get("error", {}).get("type") for record in records(ended.out)] == ["TaskTimeout", None]


def test_retries_try_again() -> None:
    ended = run("map", "work.py:flaky", "-", "--retries", "2", "--items", "files", input="state\n")
    assert (ended.status, records(ended.out)[0]["result"]) == (0, 3)
    ended = run("map", "work.py:flaky", "-", "--items", "files", input="other\n")
    assert ended.status == 1


@pytest.mark.parametrize("kind", ["lines", "jsonl", "csv", "files"])
def test_a_result_does_not_wait_for_the_next_line(kind: str) -> None:
    with started("map", "work.py:same", "-", "--items", kind, stdin=subprocess.PIPE) as command:
        source, results = command.process.stdin, command.process.stdout
        assert source is not None
        assert results is not None
        if kind == "csv":
            source.write(b"n\n")
        for number in range(1, 31):
            for piece in (b"%d" % number, b"%d\n" % number):
                source.write(piece)
                source.flush()
            item = json.loads(results.readline())["item"]
            assert item == {"csv": {"n": f"{number}{number}"}, "jsonl": int(f"{number}{number}")}.get(kind, item)
        source.write(b"99")
        source.close()
        command.process.stdin = None
        assert json.loads(results.readline())["index"] == 30
        assert command.process.wait(10) == 0


def test_what_a_task_prints_does_not_get_among_the_results() -> None:
    ended = run("map", "work.py:talk", "-", input="a\nb\n")
    assert [record["result"] for record in records(ended.out)] == ["", ""]
    assert "hello from a" in ended.lines


def test_what_a_module_prints_when_imported_does_not_either() -> None:
    Path("loud.py").write_text(
        "import os\nprint('imported')\nos.system('echo from a shell')\ndef f(text): return text\n"
    )
    ended = run("map", "loud.py:f", "-", "--preload", "loud", input="a\n")
    assert ended.out == '{"index": 0, "item": "a", "result": "a"}\n'
    assert "imported" in ended.lines
    assert "from a shell" in ended.lines
    ended = run("map", "loud.py:f", "-", "-o", "out.jsonl", input="a\n")
    assert "imported" in ended.out.splitlines()


def test_there_may_be_no_standard_output_or_error() -> None:
    ended = shell("echo a | manycore map work.py:same - 2>&-")
    assert ended.out == '{"index": 0, "item": "a", "result": "a"}\n0 0\n'
    ended = shell("echo a | manycore map work.py:talk - >&-")
    assert ended.out == "0 1\n"
    assert ended.lines == ["manycore: error: cannot write standard output: it is closed"]


def test_preloaded_modules_are_there_and_fail_early() -> None:
    Path("mc_heavy.py").write_text("")
    ended = run("map", "work.py:preloaded", "-", "--preload", "mc_heavy", input="a\n")
    assert records(ended.out)[0]["result"] is True
    one_line(run("map", "work.py:same", "-", "--preload", "mc_absent"), "there is no module 'mc_absent'", 2)


def test_no_items_are_no_failure() -> None:
    Path("empty").mkdir()
    ended = run("map", "work.py:same", "empty", "-o", "out.jsonl")
    assert ended.status == 0
    assert ended.lines[0].startswith("0 items: nothing to do")
    assert Path("out.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["work.py:sise", "."], "there is no 'sise' in work.py; did you mean 'size'?"),
        (["absent.py:f", "."], "there is no file 'absent.py'"),
        (["mc_absent:f", "."], "there is no module 'mc_absent'"),
        (["work.py:size", "nowhere"], "there is no file or folder 'nowhere'"),
        (["work.py:size", "*.nothing"], "nothing matches '*.nothing'"),
        (["work.py:size", ".", "-o", "no/such/folder/x"], "cannot write 'no/such/folder/x': No such file"),
        (["work.py:WORK", "."], "there is no 'WORK'"),
    ],
)
def test_bad_usage_is_one_line_and_status_two(args: list[str], message: str) -> None:
    ended = run("map", *args)
    one_line(ended, message, 2)
    assert ended.lines[0].startswith("manycore: error: ")
    assert os.listdir() == ["work.py"] or set(os.listdir()) == {"work.py", "__pycache__"}


def test_options_are_checked() -> None:
    for option in (["-j", "0"], ["--timeout", "0"], ["--items", "nonsense"], ["--on-error", "what"]):
        ended = run("map", "work.py:size", ".", *option)
        assert ended.status == 2
        assert "Traceback" not in ended.err


def test_a_module_that_fails_to_import_shows_its_traceback_once() -> None:
    Path("broken.py").write_text("import mc_absent_thing\n")
    ended = run("map", "broken.py:f", ".")
    assert ended.status == 2
    assert ended.err.count("Traceback") == 1
    assert ended.err.count("mc_absent_thing") == 3
    assert "manycore/" not in ended.err
    assert ended.lines[-1] == (
        "manycore: error: cannot import broken.py: ModuleNotFoundError: No module named 'mc_absent_thing'"
    )


@pytest.mark.parametrize("where", ["> /dev/full", "-o /dev/full"])
def test_a_full_disk(where: str) -> None:
    ended = shell(f"seq 1 1000 | manycore map work.py:square - {where}")
    assert ended.out.split() == ["0", "1"]
    assert len(ended.lines) == 1
    assert "No space left on device" in ended.lines[0]


def test_head_ends_the_run_quietly() -> None:
    numbers(1_000_000)
    started = time.monotonic()
    ended = shell("manycore map work.py:square numbers.txt | head -3")
    elapsed = time.monotonic() - started
    assert [record["result"] for record in records("\n".join(ended.out.splitlines()[:3]))] == [0, 1, 4]
    assert ended.out.splitlines()[3] == "141 0"
    assert ended.err == ""
    assert elapsed < 10  # a second on a calm machine; all the lines take several times as long as that


def test_a_reader_that_leaves_is_noticed_while_tasks_are_slow() -> None:
    started = time.monotonic()
    ended = shell("printf '0\\n40\\n' | manycore map work.py:nap - | head -1")
    assert ended.out.splitlines()[1] == "0 141 0"
    assert ended.err == ""
    assert time.monotonic() - started < 10
