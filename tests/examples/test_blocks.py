"""Every code block of the README and the documentation runs, as a stranger would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.blocks import PAGES, Block, all_blocks, blocks_of, same_output

PYTHON = all_blocks("python")
CONSOLE = all_blocks("console")
LANGUAGES = {"python", "console", "text", "sh", "c", "toml", "json", ""}  # `sh`: the README's commands, run by CI
BOUND_S = 50


@pytest.fixture
def environment() -> dict[str, str]:
    """The commands of this interpreter's environment come first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "100"}


def run(command: list[str], folder: Path, environment: dict[str, str], given: str | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in PYTHON])
def test_a_python_block_runs_and_prints_what_the_page_says(
    block: Block, tmp_path: Path, environment: dict[str, str]
) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    script = tmp_path / "example.py"
    script.write_text(block.code)
    printed = run([sys.executable, script.name], tmp_path, environment)
    if block.prints is not None:
        assert same_output(block.prints, printed), printed


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in CONSOLE])
def test_a_console_block_runs(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    if block.not_run:
        pytest.skip(block.not_run)
    commands = [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]
    assert commands, "a console block shows at least one command, after '$ '"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    shown = [line for line in block.code.splitlines() if not line.startswith("$ ")]
    assert not shown or same_output("\n".join(shown) + "\n", done.stdout), done.stdout


README = [block for block in PYTHON if block.page == "README.md"]


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in README])
def test_the_readmes_example_runs_from_standard_input(
    block: Block, tmp_path: Path, environment: dict[str, str]
) -> None:
    printed = run([sys.executable, "-"], tmp_path, environment, given=block.code)
    assert block.prints is None or same_output(block.prints, printed), printed


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in README])
def test_the_readmes_example_runs_in_an_ipython_cell(block: Block, tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("IPython", reason="IPython is not installed here")
    program = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        f"result = shell.run_cell({block.code!r}, store_history=False)\n"
        "result.raise_error()\n"
    )
    environment = {**environment, "IPYTHONDIR": str(tmp_path)}
    printed = run([sys.executable, "-W", "ignore", "-c", program], tmp_path, environment)
    assert block.prints is None or same_output(block.prints, printed), printed


def test_every_block_says_what_it_is_and_few_are_not_run() -> None:
    blocks = [block for page in PAGES if page.exists() for block in blocks_of(page)]
    unknown = [block.name for block in blocks if block.language not in LANGUAGES]
    assert unknown == []
    assert len([block for block in blocks if block.not_run]) <= 3


def test_the_readmes_two_commands_are_one_line_each() -> None:
    commands = [block.code.strip() for block in all_blocks("sh") if block.page == "README.md"]
    assert len(commands) == 2
    assert all("\n" not in command and "pip install" in command for command in commands)
    assert commands[0].endswith("manycore demo")
    assert commands[1].endswith("-m pytest")


def test_output_is_compared_with_room_for_what_varies() -> None:
    assert same_output("a\nb\n", "a\nb\n")
    assert same_output("a\n...\nc\n", "a\nx\ny\nc\n")
    assert same_output("a\n...\n", "a\n")
    assert not same_output("a\nb\n", "a\nc\n")
    assert not same_output("a\n", "a\nb\n")
