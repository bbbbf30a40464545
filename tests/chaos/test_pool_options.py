"""What tasks were promised, through kills and at random instants, for both faces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import cases

SCRIPT = "pool_options_script.py"


@pytest.mark.timeout(120)
@cases.everywhere(cases.names(SCRIPT))
def test_options(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path, limit=60)
