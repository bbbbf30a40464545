"""Pools that live long, and pools of many workers."""

from __future__ import annotations

from operator import methodcaller
from pathlib import Path

import pytest

import manycore
from tests.chaos import cases


@pytest.mark.parametrize("face", ["pool", "executor"])
def test_a_trickle_of_tasks_leaves_no_trace(face: str, tmp_path: Path) -> None:
    """Neither memory nor descriptors grow, and afterwards an idle pool uses less than 0.1% of a core."""
    cases.run("endurance_script.py", face, folder=tmp_path, limit=50.0)


@pytest.mark.parametrize("face", ["pool", "executor", "map"])
def test_64_workers_at_once(face: str) -> None:
    """All of them wait for each other, so each has one task."""
    meet = methodcaller("wait", 50)  # a function of this module would have each worker import what it imports
    barrier = manycore.Barrier(64)
    arrived: list[int]
    if face == "map":
        arrived = manycore.map(meet, [barrier] * 64, workers=64)
    elif face == "pool":
        with manycore.Pool(64) as pool:
            arrived = pool.map(meet, [barrier] * 64, chunksize=1)
            assert sum(pool.imap_unordered(abs, range(5_000))) == sum(range(5_000))
            assert pool.stats().workers_died == 0
    else:
        with manycore.ProcessPoolExecutor(64) as executor:
            futures = [executor.submit(meet, barrier) for _ in range(64)]
            arrived = [future.result() for future in futures]
            assert sum(executor.map(abs, range(5_000))) == sum(range(5_000))
            assert executor.stats().workers_died == 0
    assert sorted(arrived) == list(range(64))
