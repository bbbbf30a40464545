"""Pools end: by themselves, by their program's end, by signals, by a kill of the parent, and beside forks of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.chaos import cases

SCRIPT = "pool_ends_script.py"
INTERRUPTED = ["waits_for_a_result", "waits_for_a_map", "waits_in_a_with_block", "maps_for_ever"]
STORMS = ["survives_interrupts", "survives_interrupts_in_all_it_does"]
KILLED = [*INTERRUPTED, "holds_the_interpreter", "runs_tasks_that_have_children", "starts_workers_without_end"]
ALONE = [name for name in cases.names(SCRIPT) if name not in {*KILLED, *STORMS}]
PROMPT_S = 6.0  # two seconds are wanted; the machine may be busy

both_faces = pytest.mark.parametrize("face", ["pool", "executor"])


@cases.everywhere(ALONE)
def test_end(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path)
    if case == "exit_busy" and face == "executor":
        assert len(list(tmp_path.glob("done*"))) == 20


@both_faces
@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("case", INTERRUPTED)
def test_interrupted_from_the_terminal(case: str, times: int, face: str, seed: int, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole foreground group: one traceback of the program's own, and a prompt end."""
    sent = time.monotonic()

    def interrupt(child: subprocess.Popen[str]) -> None:
        nonlocal sent
        sent = time.monotonic()
        for _ in range(times):
            os.killpg(child.pid, signal.SIGINT)

    ended = cases.run(SCRIPT, case, face, str(seed), folder=tmp_path, meanwhile=interrupt, expected=None)
    assert time.monotonic() - sent < PROMPT_S
    assert ended.status in {-signal.SIGINT, 1}, ended
    assert "KeyboardInterrupt" in ended.err
    if times == 1:
        assert ended.err.count("Traceback") == 1, ended.err


@both_faces
@pytest.mark.parametrize("case", STORMS)
def test_interrupts_in_a_storm(case: str, face: str, seed: int, tmp_path: Path) -> None:
    def interrupt(child: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 2.0  # and not while the interpreter ends, when nobody can catch it
        while child.poll() is None and time.monotonic() < end:
            try:
                os.kill(child.pid, signal.SIGINT)
            except ProcessLookupError:
                return
            time.sleep(0.01)

    cases.run(SCRIPT, case, face, str(seed), folder=tmp_path, meanwhile=interrupt)


@both_faces
@pytest.mark.parametrize("case", cases.names("interrupts_script.py"))
def test_interrupts_while_other_threads_use_the_pool(case: str, face: str, seed: int, tmp_path: Path) -> None:
    """250 Ctrl-C; MANYCORE_CHAOS_MANY=40 for 10,000."""
    limit = cases.LIMIT_S * max(1, int(os.environ.get("MANYCORE_CHAOS_MANY", "1")))
    cases.run("interrupts_script.py", case, face, str(seed), folder=tmp_path, limit=limit)


@cases.everywhere(KILLED)
def test_parent_killed(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    """`cases.run` fails when anything of it is alive a moment later."""

    def kill(child: subprocess.Popen[str]) -> None:
        child.kill()

    ended = cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path, meanwhile=kill, expected=None)
    assert ended.status == -signal.SIGKILL
