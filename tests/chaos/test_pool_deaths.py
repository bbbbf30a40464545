"""Workers die, and only the task at fault with them: every way of dying, for both faces and every start method."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import cases

SCRIPT = "pool_deaths_script.py"
LONG = {"ledger_of_calls": 240.0, "ledger_of_a_map": 240.0}
if os.environ.get("MANYCORE_CHAOS_WHOLE"):
    LONG["one_task_a_worker"] = 1200.0  # 10,000 starts


@pytest.mark.timeout(300 if "one_task_a_worker" not in LONG else 1300)
@cases.everywhere(cases.names(SCRIPT))
def test_death(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    limit = LONG.get(case, cases.LIMIT_S)
    print(cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path, limit=limit).out)
