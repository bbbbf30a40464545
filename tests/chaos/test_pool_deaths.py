"""Workers die, and only the task at fault with them: every way of dying, for both faces and every start method."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import cases

SCRIPT = "pool_deaths_script.py"


@cases.everywhere(cases.names(SCRIPT))
def test_death(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path)
