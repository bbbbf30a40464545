"""The order of lines, and what becomes of the file that they go to."""

import os
import random
import stat
from pathlib import Path

import pytest

from manycore._cli import output
from manycore._cli.ending import Ending
from manycore._cli.exits import CommandError
from manycore._cli.output import InOrder, Output


@pytest.mark.parametrize("most_held_bytes", [1 << 20, 64])
def test_lines_come_in_order_whatever_the_order_they_are_put_in(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, most_held_bytes: int
) -> None:
    monkeypatch.setattr(output, "_MOST_HELD_BYTES", most_held_bytes)
    for _ in range(20):
        written: list[bytes] = []
        order = InOrder(written.append)
        indices = list(range(300))
        rng.shuffle(indices)
        for index in indices:
            order.put(index, b"" if index % 7 == 0 else b"%d" % index)
        assert written == [b"%d" % index for index in range(300) if index % 7]


@pytest.mark.parametrize("most_held_bytes", [1 << 20, 16])
def test_the_rest_is_passed_on_past_the_gaps(monkeypatch: pytest.MonkeyPatch, most_held_bytes: int) -> None:
    monkeypatch.setattr(output, "_MOST_HELD_BYTES", most_held_bytes)
    written: list[bytes] = []
    order = InOrder(written.append)
    for index in (9, 0, 4, 3, 7):
        order.put(index, b"line %d" % index)
    assert written == [b"line 0"]
    order.put_rest()
    assert written == [b"line 0", b"line 3", b"line 4", b"line 7", b"line 9"]


def test_the_file_gets_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    path.chmod(0o640)
    out = Output(str(path), Ending())
    out.write(b"new\n")
    assert path.read_text() == "old"
    out.finish()
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_written_is_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "out"
    out = Output(str(path), Ending())
    out.write(b"line\n")
    assert out.keep(1.0) == f"{path}.partial"
    assert os.listdir(tmp_path) == ["out.partial"]
    assert (tmp_path / "out.partial").read_text() == "line\n"


def test_nothing_is_kept_where_nothing_was_written(tmp_path: Path) -> None:
    assert Output(str(tmp_path / "out"), Ending()).keep(1.0) == ""
    assert os.listdir(tmp_path) == []


def test_what_an_earlier_run_has_kept_goes_when_there_is_something_better(tmp_path: Path) -> None:
    kept = tmp_path / "out.partial"
    kept.write_text("a longer line of an earlier run\n")
    assert Output(str(tmp_path / "out"), Ending()).keep(1.0) == ""
    assert kept.read_text() == "a longer line of an earlier run\n"
    out = Output(str(tmp_path / "out"), Ending())
    out.write(b"new\n")
    assert out.keep(1.0) == str(kept)
    assert kept.read_text() == "new\n"
    Output(str(tmp_path / "out"), Ending()).finish()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == ""


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    out = Output(str(tmp_path / "link"), Ending())
    out.write(b"new")
    out.finish()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    first = Output(str(tmp_path / "out"), Ending())
    with pytest.raises(CommandError, match="another process is writing"):
        Output(str(tmp_path / "out"), Ending())
    first.write(b"mine")
    first.finish()
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["no/such/folder", "."])
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandError, match="cannot write"):
        Output(str(tmp_path / name), Ending())
