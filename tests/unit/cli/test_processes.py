"""`manycore ps`, `stacks` and `kill`: what they show and do, also when the program is stuck."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from manycore._cli.group import _group as cli
from manycore._launch import tree
from manycore._launch.child import is_ready

PROGRAM = """
import itertools, os, sys, threading
import manycore

def stuck_in_c(said):
    said.send_bytes(b"here")
    all(itertools.repeat(True))

if __name__ == "__main__":
    here, there = manycore.Pipe()
    manycore.set_start_method(sys.argv[2])
    process = manycore.Process(target=stuck_in_c, args=(there,), name="the busy one")
    process.start()
    here.recv_bytes()
    print(process.pid, flush=True)
    if "stuck" in sys.argv:
        all(itertools.repeat(True))
    threading.Event().wait()
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


PARAMETERS = [("waits", "zygote"), ("stopped", "zygote"), ("stuck", "zygote")]
PARAMETERS += [("stuck", method) for method in ("fork", "spawn", "forkserver")]


@pytest.fixture(params=PARAMETERS, ids="-".join)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A program, which waits, is stopped, or holds its interpreter's lock in C, and a child of it that is so stuck."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM, encoding="utf-8")
    state, _ = request.param
    running = subprocess.Popen([sys.executable, str(path), *request.param], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        pid = int(running.stdout.readline())
        if state == "stopped":
            os.kill(running.pid, signal.SIGSTOP)
        yield running, pid
    finally:
        running.kill()
        running.communicate()


def test_ps_shows_the_tree(program: tuple[subprocess.Popen[str], int], request: pytest.FixtureRequest) -> None:
    parent, pid = program
    helpers = {
        "zygote": {"zygote"},
        "forkserver": {"forkserver", "zygote"},
    }  # it removes the server's socket at the end
    helper = helpers.get(request.node.callspec.params["program"][1], set())
    text = invoke("ps").output
    assert f"{parent.pid:8}" in text
    assert f"  process 'the busy one' of {parent.pid} [stuck_in_c]" in text
    assert f"zygote of {parent.pid}" not in text
    assert f"fork server of {parent.pid}" not in text
    entries = {entry["pid"]: entry for entry in map(json.loads, invoke("ps", "--json", "--all").output.splitlines())}
    assert entries[parent.pid]["role"] in {"program", "child"}  # a child, where these tests' process uses manycore
    assert entries[pid]["parent"] == parent.pid
    assert entries[pid]["task"] == "stuck_in_c"
    assert entries[pid]["role"] == "process"
    assert entries[pid]["state"] == "running"
    assert entries[pid]["rss_bytes"] > 1 << 20
    assert entries[pid]["cpu_seconds"] >= 0
    assert 0 <= entries[pid]["age_seconds"] < 600
    below = {entry["role"] for entry in entries.values() if entry["parent"] == parent.pid}
    assert below - {"spare"} == {"process", *helper}


def test_stacks_of_a_stuck_program(program: tuple[subprocess.Popen[str], int]) -> None:
    parent, pid = program
    for asked in (parent.pid, pid):
        result = invoke("stacks", asked, "--timeout", 30)
        assert result.exit_code == 0
        assert f"{pid} process 'the busy one'" in result.output
        assert "in stuck_in_c" in result.output
        assert "_bootstrap" not in result.output
        assert "<module>" not in result.output
    assert "in _bootstrap" in invoke("stacks", pid, "--timeout", 30, "--full").output


def test_kill_ends_the_tree(program: tuple[subprocess.Popen[str], int]) -> None:
    parent, _ = program
    below = tree.hold(tree.descendants(parent.pid))
    result = invoke("kill", parent.pid)
    assert result.exit_code == 0, result.output
    assert "processes ended" in result.output
    assert parent.wait(20) == -signal.SIGTERM
    for pidfd in below:
        assert is_ready(pidfd)
        os.close(pidfd)


def test_kill_of_one_process_leaves_the_program(program: tuple[subprocess.Popen[str], int]) -> None:
    parent, pid = program
    assert invoke("kill", pid).exit_code == 0
    assert parent.poll() is None


@pytest.mark.parametrize("command", ["stacks", "kill"])
def test_a_stranger_is_left_alone(command: str) -> None:
    result = invoke(command, os.getppid())
    assert result.exit_code == 2
    assert "no process of manycore's" in result.output
