"""Running a program that needs a library."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

BOUND_S = 50


def run(program: str, folder: Path, *needs: str) -> tuple[str, str]:
    """What a script prints, on standard output and on standard error; skips where a library is not installed."""
    for name in needs:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed here")
    script = folder / "program.py"
    script.write_text(dedent(program), encoding="utf-8")
    command = [sys.executable, script.name]
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOUND_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr
