"""What src/manycore/__init__.pyi has to be: `python -m tests.unit.face_stub` writes it from the table of names."""

from __future__ import annotations

from pathlib import Path

import manycore

HEAD = """\
# The face as type checkers see it: every name of the table in __init__.py, from its one home.
# Written by `python -m tests.unit.face_stub`.

"""


def text() -> str:
    """The stub for the table as it is."""
    lines = sorted(f"from manycore.{home} import {name} as {name}" for name, home in manycore._HOMES.items())
    names = "".join(f'    "{name}",\n' for name in manycore.__all__)
    return f"{HEAD}{chr(10).join(lines)}\n\n__version__: str\n_HOMES: dict[str, str]\n\n__all__ = [\n{names}]\n"


if __name__ == "__main__":
    target = Path(__file__).resolve().parents[2] / "src" / "manycore" / "__init__.pyi"
    target.write_text(text())
