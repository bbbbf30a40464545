"""A fork of the program holds its parent's futures: it is told so, and its parent's calls stay as they were."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from manycore import Pool, PoolClosed, ProcessPoolExecutor

if TYPE_CHECKING:
    from collections.abc import Callable


def _in_fork(ask: Callable[[], Any]) -> int:
    """The exit code of a fork that asks."""
    pid = os.fork()
    if pid == 0:
        try:
            ask()
        except PoolClosed as error:
            os._exit(0 if "this process's parent" in str(error) else 2)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("ask", ["get", "wait", "result", "exception"])
def test_a_fork_does_not_wait_for_its_parents_calls(ask: str) -> None:
    with Pool(1) as pool:
        assert _in_fork(getattr(pool.apply_async(time.sleep, (100,)), ask)) == 0
        assert _in_fork(getattr(pool.map_async(time.sleep, [100]), ask)) == 0


def test_a_fork_cancels_nothing_of_its_parents() -> None:
    with ProcessPoolExecutor(1) as executor:
        first, second = executor.submit(time.sleep, 0.2), executor.submit(abs, -1)
        assert _in_fork(lambda: os._exit(0 if not second.cancel() and not first.cancel(running=True) else 1)) == 0
        assert second.result() == 1


def test_a_fork_has_the_results_that_were_there() -> None:
    with Pool(1) as pool:
        done = pool.apply_async(abs, (-1,))
        done.wait()
        assert _in_fork(lambda: os._exit(0 if done.get() == 1 else 1)) == 0
