"""A flag that is set once: waits that an interrupt ends at any point."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from manycore._launch.flag import Flag


def test_it_is_set_once_and_for_all() -> None:
    flag = Flag()
    assert not flag.is_set()
    assert not flag.wait(0)
    assert not flag.wait(0.01)
    assert not flag._sleepers
    woken = []
    threads = [threading.Thread(target=lambda: woken.append(flag.wait(60))) for _ in range(8)]
    for thread in threads:
        thread.start()
    flag.set()
    for thread in threads:
        thread.join(20)
    assert woken == [True] * 8
    flag.set()
    assert flag.is_set()
    assert flag.wait()
    assert flag.wait(0)


def test_a_wait_is_interrupted_at_any_of_its_steps() -> None:
    """With the interrupt's own exception, and others are woken all the same."""
    step = 0
    while True:
        step += 1
        flag, left, reached = Flag(), step, False

        def count(frame: FrameType, _event: str, _arg: Any) -> Any:
            nonlocal left, reached
            frame.f_trace_opcodes = frame.f_code is Flag.wait.__code__
            left -= 1
            if left == 0:
                reached = True
                signal.raise_signal(signal.SIGINT)
            return count

        before = sys.gettrace()
        try:
            sys.settrace(count)
            flag.wait(0.001)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        other = threading.Thread(target=flag.wait)
        other.start()
        flag.set()
        other.join(20)
        assert not other.is_alive(), step
        assert flag.wait(0)
        if not reached:
            break
    assert step > 20


def test_a_wait_that_sleeps_is_interrupted() -> None:
    flag = Flag()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        flag.wait(20)
    flag.set()
    assert flag.wait(0)
