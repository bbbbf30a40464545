"""The command itself, its help, `doctor` and `demo`, run for real."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manycore._cli import COMMANDS, checks
from manycore._cli.checks import Finding, examine
from tests.unit.cli.command import EXECUTABLE, run, shell

BARE_START_S = 0.5  # what `manycore --help` may take over a bare interpreter, on a busy machine; 0.06 on a calm one


def test_help_names_every_command_and_loads_none() -> None:
    ended = run("--help")
    assert ended.status == 0
    for name, (_, line) in COMMANDS.items():
        assert name in ended.out
        assert line in ended.out
    code = "import sys; sys.argv = ['manycore', '--help']\nfrom manycore._cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"rich", "psutil", "manycore._engine", "manycore._cli.map", "multiprocessing"}


def test_help_is_fast() -> None:
    def fastest(command: list[str]) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return min(times)

    assert fastest([str(EXECUTABLE), "--help"]) < fastest([sys.executable, "-c", ""]) + BARE_START_S


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    ended = run(command, "--help")
    assert ended.status == 0
    assert ended.out.startswith(f"Usage: manycore {command} ")


def test_no_command_shows_the_help() -> None:
    ended = run()
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.startswith("Usage: manycore ")


def test_a_wrong_command_is_bad_usage() -> None:
    ended = run("dcotor")
    assert ended.status == 2
    assert ended.lines[-1] == "Error: There is no command 'dcotor'. Did you mean 'doctor'?"


def test_the_version() -> None:
    assert run("--version").out.startswith("manycore 0.")
    assert shell("python -m manycore --version").out.startswith("manycore 0.")


def test_a_closed_reader_is_no_error() -> None:
    ended = shell("manycore doctor | true")
    assert ended.err == ""


def test_the_doctor_finds_this_machine_well() -> None:
    ended = run("doctor")
    assert ended.status == 0, ended.out
    assert ended.out.splitlines()[-1].startswith("manycore works here.")
    report = json.loads(run("doctor", "--json").out)
    assert report["ok"] is True
    names = [finding["name"] for finding in report["findings"]]
    assert len(names) == len(set(names)) == len(checks.CHECKS)
    assert all(finding["value"] and finding["meaning"] for finding in report["findings"])
    cores = next(finding for finding in report["findings"] if finding["name"] == "Cores")
    assert cores["value"] == f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"


def test_the_doctor_counts_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    ended = shell(f"taskset -c {one} manycore doctor --json")
    report = json.loads(ended.out.rpartition("}")[0] + "}")
    cores = next(finding for finding in report["findings"] if finding["name"] == "Cores")
    assert cores["value"] == f"1 of {os.cpu_count()}"
    if (os.cpu_count() or 1) > 1:
        assert "affinity allows 1" in cores["meaning"]


def test_where_it_cannot_work_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_name: str, _flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refused)
    memfd = next(finding for finding in examine_without_worker(monkeypatch) if finding.name == "memfd")
    assert (memfd.status, memfd.value) == ("fail", "Operation not permitted")


def test_a_check_that_fails_itself_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    findings = examine_without_worker(monkeypatch)
    assert len(findings) == len(checks.CHECKS)
    assert next(finding for finding in findings if finding.name == "pidfd").status == "note"


def examine_without_worker(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    monkeypatch.setattr(checks, "CHECKS", tuple(check for check in checks.CHECKS if check is not checks._worker))
    return examine()


def test_the_demo_finds_the_same_three_ways() -> None:
    """On a part of the standard library; the whole of it is the README's first command."""
    report = json.loads(run("demo", os.path.dirname(asyncio.__file__), "--json").out)
    assert [way["way"] for way in report["runs"]] == ["serial", "threads", "processes"]
    assert report["files"] > 20
    assert len(report["most_complex"]) == 10
    complexities = [function["complexity"] for function in report["most_complex"]]
    assert complexities == sorted(complexities, reverse=True)
    serial, _, processes = report["runs"]
    assert serial["speedup"] == 1
    # How fast it is, benchmarks/workloads/standard_library.py shows; here, that both cores were put to work.
    assert processes["workers"] == report["cores"]
    assert processes["cpu_seconds"] > 0.5 * serial["cpu_seconds"]
    assert processes["speedup"] == pytest.approx(serial["seconds"] / processes["seconds"], rel=0.02)


def test_the_demo_measures_a_folder_of_your_own(tmp_path: Path) -> None:
    assert "no Python source files" in run("demo", str(tmp_path)).err
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("def (")
    assert "2 files, 0 lines, 0 functions" in run("demo", str(tmp_path)).out
    (tmp_path / "good.py").write_text("def one():\n    return 1\n")
    shown = run("demo", str(tmp_path)).out
    assert "3 files, 2 lines, 1 function" in shown
    assert "The longest function: one, 2 lines, good.py:1" in shown
