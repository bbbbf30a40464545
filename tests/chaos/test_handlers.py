"""Handlers of signals and finalizers that use a pool, or end it, in the middle of its steps: nothing hangs."""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos import cases

SCRIPT = "handlers_script.py"
LIMIT_S = 7200.0 if os.environ.get("MANYCORE_CHAOS_WHOLE") else 60.0


@cases.everywhere(cases.names(SCRIPT))
def test_handler(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path, limit=LIMIT_S)
