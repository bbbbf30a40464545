"""Exactly once: tasks write a ledger while workers are killed or replaced, for both faces and every start method."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import cases

SCRIPT = "pool_ledger_script.py"
LIMIT_S = 1200.0 if os.environ.get("MANYCORE_CHAOS_WHOLE") else 240.0


@pytest.mark.timeout(LIMIT_S + 60)
@cases.everywhere(cases.names(SCRIPT))
def test_ledger(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    print(cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path, limit=LIMIT_S).out)
