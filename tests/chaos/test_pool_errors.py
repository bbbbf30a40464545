"""Pickles, exceptions, initializers, callbacks and inputs that go wrong, for both faces: the others never notice."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import cases

SCRIPT = "pool_errors_script.py"


SLOW = ("initializer_that_keeps_the_interpreter", "initializer_that_stops_its_process")


@cases.everywhere(cases.names(SCRIPT), slow=SLOW)
def test_error(case: str, face: str, method: str, seed: int, tmp_path: Path) -> None:
    cases.run(SCRIPT, case, face, str(seed), method, folder=tmp_path)
