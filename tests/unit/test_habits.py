"""What children import again and again is imported once, by their zygote; and nothing of the caller's is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from manycore._launch import launch, shutdown

HERE = "tests.unit.launch_targets:"
ROUNDS = 20  # launches until one has what the first had to import: the zygote imports it when no request waits


def already_there(names: str) -> list[str]:
    """Launch a child that imports `names`; those that it had from its zygote."""
    read, write = os.pipe()
    child = launch(HERE + "import_and_tell", names.encode(), [write])
    os.close(write)
    with open(read, encoding="ascii") as file:
        found = file.read().split()
    status = child.wait(30)
    assert status is not None
    assert status.exitcode == 0
    return found


@pytest.fixture(autouse=True)
def _new_zygote() -> None:
    shutdown()


def test_standard_modules_are_learned_with_what_they_import() -> None:
    assert already_there("graphlib") == []
    for _ in range(ROUNDS):
        if already_there("graphlib types") == ["graphlib", "types"]:
            return
    pytest.fail("graphlib is imported in each child anew")


def test_modules_of_this_package_are_learned() -> None:
    for _ in range(ROUNDS):
        if already_there("manycore.queues") == ["manycore.queues"]:
            return
    pytest.fail("manycore.queues is imported in each child anew")


def test_a_callers_module_is_imported_by_each_child_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importers = tmp_path / "importers"
    (tmp_path / "a_callers_own.py").write_text(
        f"import graphlib, os\nwith open({str(importers)!r}, 'a') as file:\n    file.write(f'{{os.getpid()}} ')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    while "graphlib" not in already_there("a_callers_own graphlib"):
        pass
    assert already_there("a_callers_own") == []
    pids = importers.read_text().split()
    assert len(pids) == len(set(pids)) >= 3


def test_nothing_is_learned_where_a_caller_has_a_module_of_a_standard_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("import graphlib\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for _ in range(3):
        assert already_there("colorsys graphlib") == []


def test_the_usual_module_is_there_from_the_first_child_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert already_there("typing") == ["typing"]
    bare = subprocess.run([sys.executable, "-c", "import sys; sys.exit('typing' in sys.modules)"], check=False)
    if bare.returncode == 0:  # else something imports it at each interpreter's start
        (tmp_path / "typing.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        shutdown()
        assert already_there("typing") == []


@pytest.mark.parametrize("module", ["this", "antigravity"])
def test_modules_that_do_something_are_not_learned(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER", "true")
    for _ in range(3):
        assert already_there(module) == []


def test_another_file_under_the_descriptors_number_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a_callers_file"
    with path.open("wb") as file:
        child = launch(HERE + "import_behind_another_file", b"graphlib", [file.fileno()])
        status = child.wait(30)
    assert status is not None
    assert status.exitcode == 0
    assert path.read_bytes() == b""
