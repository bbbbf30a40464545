"""Code by value: scripts without a guard, standard input, exec, and what a worker sends back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "main_script.py"


def run(*command: str, **options: Any) -> None:
    environment = {**os.environ, "MANYCORE_TEST_DIRECTORY": str(HERE)}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60, check=False, **options
    )
    assert done.stdout == "done\n", done.stderr
    assert done.returncode == 0


def test_script_without_guard() -> None:
    run(str(SCRIPT))


def test_standard_input() -> None:
    run("-", input=SCRIPT.read_text())


def test_real_pools_processes_and_queues() -> None:
    script = HERE / "pool_script.py"
    run(str(script))
    run("-", input=script.read_text())


@pytest.mark.parametrize("name", ["__main__", "notebook", "<cell>"])
def test_exec_namespace(name: str) -> None:
    code = f"exec(compile(open({str(SCRIPT)!r}).read(), 'cell', 'exec'), {{'__name__': {name!r}}})"
    run("-c", code)


def test_module_loaded_from_a_path(tmp_path: Path) -> None:
    module = tmp_path / "elsewhere.py"
    module.write_text(SCRIPT.read_text())
    run(
        "-c",
        f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("elsewhere", {str(module)!r})
module = importlib.util.module_from_spec(spec)
sys.modules["elsewhere"] = module
spec.loader.exec_module(module)
""",
    )


def test_notebook_cells() -> None:
    pytest.importorskip("IPython")
    run(
        "-c",
        f"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell({f"import sys; sys.path.insert(0, {str(HERE)!r}); from codec_worker import Worker; w = Worker()"!r})
for cell in (
    "K = 2\\ndef helper(x): return x * K",
    "class C:\\n  def m(self, x): return helper(x)",
    "def expect(a, b):\\n  assert a == b, (a, b)",
    "expect(w.call(lambda x: helper(x), 4), 8)",
    "expect(w.call(C().m, 4), 8)",
    "K = 3",
    "expect(w.call(C().m, 4), 12)",
    "def helper(x): return -x",
    "expect(w.call(C().m, 4), -4)",
    "class C:\\n  def m(self, x): return 'new'",
    "expect(w.call(lambda: C().m(1)), 'new'); expect(type(w.call(lambda: C())), C)",
    "w.__exit__(); print('done')",
):
    shell.run_cell(cell).raise_error()
""",
    )
