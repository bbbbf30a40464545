"""Pools that live long, and pools of many workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import manycore
from tests.chaos import cases


@pytest.mark.parametrize("face", ["pool", "executor"])
def test_a_trickle_of_tasks_leaves_no_trace(face: str, tmp_path: Path) -> None:
    """Neither memory nor descriptors grow, and afterwards an idle pool uses less than 0.1% of a core."""
    cases.run("endurance_script.py", face, folder=tmp_path, limit=50.0)


def test_64_workers_at_once() -> None:
    """All of them wait for each other, so each has one task."""

    def meet(barrier: Any) -> int:  # by value: else each worker imports what this module does
        barrier.wait(50)
        return os.getpid()

    with manycore.Pool(64, preload=["manycore.synchronize"]) as pool:
        barrier = manycore.Barrier(64)
        assert len(set(pool.map(meet, [barrier] * 64, chunksize=1))) == 64
        assert sum(pool.imap_unordered(abs, range(5_000))) == sum(range(5_000))
        assert pool.stats().workers_died == 0
