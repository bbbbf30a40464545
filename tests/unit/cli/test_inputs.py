"""What the items are, and where each one stands."""

from pathlib import Path

import pytest

from manycore._cli.ending import Ending
from manycore._cli.exits import CommandError
from manycore._cli.inputs import Inputs, Kind
from manycore._cli.task import BadItem


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, data: bytes = b"") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def items(*names: str, kind: Kind | None = None) -> list[object]:
    return list(Inputs(names, kind, Ending()))


def test_one_file_is_its_lines_and_several_are_files() -> None:
    write("a.txt", b"1\n2")
    write("b.txt")
    assert items("a.txt") == ["1", "2"]
    assert items("b.txt") == []
    assert items("a.txt", "b.txt") == ["a.txt", "b.txt"]
    assert items("a.txt", kind="files") == ["a.txt"]
    assert items("a.txt", "a.txt", kind="lines") == ["1", "2", "1", "2"]


def test_a_folder_is_its_files_sorted_and_hidden_ones_are_left_out() -> None:
    for name in ("f/b", "f/a/2", "f/a/1", "f/.hidden", "f/.git/x", "f/c"):
        write(name)
    Path("f/loop").symlink_to("..")
    Path("f/link").symlink_to("b")
    assert items("f") == ["f/a/1", "f/a/2", "f/b", "f/c", "f/link"]
    Path("empty").mkdir()
    assert items("empty") == []


def test_a_glob_means_what_it_matches_unless_a_file_is_called_so() -> None:
    for name in ("x1.txt", "x2.txt", "d/x3.txt"):
        write(name)
    assert items("x*.txt") == ["x1.txt", "x2.txt"]
    assert items("**/*.txt") == ["d/x3.txt", "x1.txt", "x2.txt"]
    write("[x].txt", b"line\n")
    assert items("[x].txt") == ["line"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nope", "there is no file or folder 'nope'"), ("*.nope", "nothing matches '*.nope'"), ("a\0b", "cannot read")],
)
def test_an_input_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(CommandError, match=message.replace("*", r"\*")):
        Inputs([name], None, Ending())


def test_lines_lose_their_end_and_nothing_else() -> None:
    write("a", b"\xef\xbb\xbfone \r\n\n  two\n\xff\nlast")
    assert items("a") == ["one ", "", "  two", "\udcff", "last"]


def test_json_lines_leave_out_empty_ones_and_know_their_place() -> None:
    write("a.jsonl", b'1\n\n\n{"x": 2}\n \n\xff\n3')
    write("b.jsonl", b"\n4\n")
    inputs = Inputs(["a.jsonl", "b.jsonl"], "jsonl", Ending())
    found = list(inputs)
    assert [entry for entry in found if isinstance(entry, str)] == ["1", '{"x": 2}', "3", "4"]
    assert isinstance(found[2], BadItem)
    assert found[2].reason == "not JSON: byte 1 of the line is not UTF-8"
    places = [inputs.where(index) for index in range(len(found))]
    assert places == ["a.jsonl line 1", "a.jsonl line 4", "a.jsonl line 6", "a.jsonl line 7", "b.jsonl line 2"]


def test_csv_records_go_by_the_first_line() -> None:
    write("a.csv", b'n,t\n1,"x\ny"\n\n2\n3,z\n')
    inputs = Inputs(["a.csv"], "csv", Ending())
    found = list(inputs)
    assert found[0] == {"n": "1", "t": "x\ny"}
    assert isinstance(found[1], BadItem)
    assert found[1].reason == "1 fields where the first line names 2"
    assert found[2] == {"n": "3", "t": "z"}
    assert [inputs.where(index) for index in range(3)] == ["a.csv line 2", "a.csv line 5", "a.csv line 6"]


def test_a_file_that_vanishes_fails_in_its_place() -> None:
    names = [write(f"d/{letter}", letter.encode()) for letter in "abc"]
    inputs = Inputs(names, "lines", Ending())
    Path("d/b").unlink()
    assert list(inputs) == ["a", BadItem("d/b", "cannot read it: No such file or directory"), "c"]
    assert [inputs.where(index) for index in range(3)] == ["d/a line 1", "d/b", "d/c line 1"]


def test_the_output_is_no_input() -> None:
    for name in ("d/a", "d/out.jsonl", "d/out.jsonl.partial"):
        write(name)
    assert list(Inputs(["d"], None, Ending(), exclude=["d/out.jsonl", "d/out.jsonl.partial"])) == ["d/a"]


def test_the_total_is_known_for_files_and_estimated_for_lines() -> None:
    for number in range(10):
        write(f"d/{number}")
    assert Inputs(["d"], None, Ending()).total() == 10
    write("a.txt", b"12345678\n" * 1000)
    inputs = Inputs(["a.txt"], None, Ending())
    assert inputs.total() is None
    reading = iter(inputs)
    for _ in range(10):
        next(reading)
    assert inputs.total() == 1000
    assert len(list(reading)) == 990
    assert inputs.total() == 1000
