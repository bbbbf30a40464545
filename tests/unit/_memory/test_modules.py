"""A module that another thread is importing is not seen half done."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from manycore._memory.modules import loaded

BEGUN, GO_ON = threading.Event(), threading.Event()


def test_an_import_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        f"from {__name__} import BEGUN, GO_ON\nBEGUN.set()\nassert GO_ON.wait(30)\nvalue = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "slow_to_import", None)  # so that it is gone afterwards
    del sys.modules["slow_to_import"]
    assert loaded("slow_to_import") is None
    importing = threading.Thread(target=import_module, args=("slow_to_import",))
    importing.start()
    assert BEGUN.wait(30)
    threading.Timer(0.05, GO_ON.set).start()
    assert loaded("slow_to_import").value == 1
    importing.join()
    assert loaded("slow_to_import").value == 1


def test_what_is_no_module_of_a_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", object())
    assert loaded("made_by_hand") is sys.modules["made_by_hand"]
