"""Processes that contend for one lock: nobody starves, and more of them make no convoy."""

from __future__ import annotations

import os
import time

import pytest

from manycore.sharedctypes import RawArray
from manycore.synchronize import Event, Lock
from tests.unit.sync_parties import Party

SECONDS = float(os.environ.get("MANYCORE_FAIRNESS_SECONDS", "2"))  # ten, where the machine has nothing else to do


def contend(processes: int, seconds: float) -> list[int]:
    """How often each got the lock."""
    lock, go, counts, inside = Lock(), Event(), RawArray("q", processes), RawArray("q", 1)

    def work(index: int, party: Party) -> bool:
        party.say()
        go.wait()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(20):
                with lock:
                    if inside[0]:
                        return False
                    inside[0] = 1
                    counts[index] += 1
                    inside[0] = 0
        return True

    parties = [Party(work, index) for index in range(processes)]
    for party in parties:
        party.heard()
    go.set()
    assert [party.join(60) for party in parties] == [0] * processes, "two were inside at once"
    return list(counts)


@pytest.mark.timeout(240)
def test_four_contenders_share_a_lock_and_make_no_convoy() -> None:
    two, four = contend(2, SECONDS), contend(4, SECONDS)
    assert min(four) >= sum(four) / 4 / 4, f"somebody got less than a quarter of its share: {four}"
    assert sum(four) >= sum(two) / 2, f"a convoy: {two} by two, {four} by four"
