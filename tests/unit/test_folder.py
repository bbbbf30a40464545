"""What the keeper removes of a folder that a killed process has told it of, and what it leaves alone."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from pathlib import Path

import pytest

from manycore._launch import folder
from manycore._memory import keeper


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of a socket that is dead; short names, for addresses have 108 bytes."""
    made = tmp_path / "pymp-abcdefgh"
    made.mkdir()
    monkeypatch.chdir(made)
    bind("dead").close()
    return made


def bind(name: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(name)
    return made


def remove(path: Path, inode: tuple[int, int] | None = None, wait: float = 0.0) -> None:
    status = path.stat()
    told = {os.fsencode(path): inode or (status.st_dev, status.st_ino)}
    folder.remove(told, time.monotonic() + wait)


def test_dead_sockets_and_the_folder(place: Path) -> None:
    remove(place)
    assert not place.exists()


def test_what_a_process_holds_stays(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        remove(place, wait=0.05)
        assert [path.name for path in place.iterdir()] == ["dead"]
    finally:
        os.close(fd)
    remove(place)
    assert not place.exists()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_in_use_stay(kind: int, place: Path) -> None:
    with socket.socket(socket.AF_UNIX, kind) as used:
        used.bind("used")
        remove(place, wait=0.05)
        assert (place / "used").exists()
    remove(place)
    assert not place.exists()


def test_other_files_stay(place: Path) -> None:
    (place / "notes").write_text("mine", encoding="utf-8")
    remove(place, wait=5.0)  # it is not waited for them
    assert [path.name for path in place.iterdir()] == ["notes"]


def test_another_s_stay(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(place, inode=(place.stat().st_dev, 1))
    link = tmp_path / "pymp-link"
    link.symlink_to(place)
    remove(link)
    renamed = place.rename(tmp_path / "other")
    remove(renamed)
    renamed.rename(place)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove(place)
    assert [path.name for path in place.iterdir()] == ["dead"]
    folder.remove({os.fsencode(tmp_path / "pymp-none"): (1, 1)}, time.monotonic())


def test_what_the_keeper_notes_is_bounded(tmp_path: Path) -> None:
    before = keeper._fd, keeper._inode, keeper._root, keeper._start
    ours, theirs = keeper.pair()
    keeper.connect(ours)
    made = keeper.Keeper(theirs)
    try:
        kept = os.fsencode(tmp_path)
        keeper.tell_folder(kept, (1, 2))
        for number in range(keeper._MOST + 10):
            keeper.tell_folder(b"/nowhere/%d" % number, (1, number))
            made.serve()
        assert made.folders[kept] == (1, 2)
        assert len(made.folders) < keeper._MOST
        assert kept in keeper.told_folders()
    finally:
        made.close()
        os.close(ours)
        keeper._fd, keeper._inode, keeper._root, keeper._start = before
        keeper._folders.clear()
