"""What a worker imports: every worker pays for it, in time and in memory. Counted, not timed."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "logging",
    "multiprocessing",
    "numpy",
    "psutil",
    "rich",
    "subprocess",
}

PROGRAM = """
import json, sys
import manycore

def modules(_):
    import sys
    return sorted(sys.modules)

bare = set(json.loads(sys.argv[1]))
with manycore.Pool(1) as pool:
    print(json.dumps(sorted(set(pool.map(modules, [0])[0]) - bare)))
"""


def printed(*command: str) -> list[str]:
    done = subprocess.run([sys.executable, "-I", "-c", *command], check=True, capture_output=True, text=True)
    names: list[str] = json.loads(done.stdout)
    return names


def test_a_worker_imports_little() -> None:
    bare = printed("import json, sys; print(json.dumps(sorted(sys.modules)))")
    imported = printed(PROGRAM, json.dumps(bare))
    assert HEAVY & set(imported) == set()
    assert len(imported) <= 70, imported
