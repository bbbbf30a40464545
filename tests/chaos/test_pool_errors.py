"""Pickles, exceptions, initializers, callbacks and inputs that go wrong, for both faces: the others never notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import cases

SCRIPT = "pool_errors_script.py"


@pytest.mark.parametrize("face", ["pool", "executor"])
@pytest.mark.parametrize("case", cases.parameters(SCRIPT))
def test_error(case: str, face: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), folder=tmp_path)
