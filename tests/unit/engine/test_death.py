"""What messages say of tasks: short, and without running anybody's code."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from pathlib import PurePosixPath
from typing import Any, NoReturn

import numpy as np
import pytest

from manycore import Certificate, PoisonTask, TaskTimeout, WorkerDied
from manycore._engine.calls import Task
from manycore._engine.death import death_error, shorten
from manycore._engine.orders import Failed
from manycore._engine.policy import Policy


class Rude:
    def __repr__(self) -> NoReturn:
        raise AssertionError("a message must not run this")

    __str__ = __len__ = __iter__ = __repr__


class RudeList(list):  # type: ignore[type-arg]
    __repr__ = __len__ = __iter__ = Rude.__repr__


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1 << 2000, "<int of 2001 bits>"),
        ("a.png", "'a.png'"),
        ((1,), "(1,)"),
        ([1, "b", None], "[1, 'b', None]"),
        ({"a": [1]}, "{'a': [1]}"),
        ([[[1]]], "[[<list of 1>]]"),
        (list(range(100)), "<list of 100>"),
        (PurePosixPath("a/b"), "PurePosixPath('a/b')"),
        (np.zeros((2, 3)), "<ndarray (2, 3) float64>"),
        (Rude(), "<Rude>"),
        ([Rude(), RudeList([1])], "[<Rude>, <RudeList>]"),
    ],
)
def test_short(value: Any, text: str) -> None:
    assert shorten(value) == text


def test_long_strings_are_cut() -> None:
    assert len(shorten("x" * 10_000)) < 80
    assert len(shorten([["y" * 50] * 10] * 10)) < 130


def failed(policy: Policy | None = None, *, timeout: bool = False, deaths: tuple[Any, ...] = ()) -> Failed:
    return Failed(Task(None, None, b"", policy=policy), 0, timeout, deaths)


def test_poison_says_how_often() -> None:
    deaths = (Certificate(5, "", -9), Certificate(6, "", 3))
    policy = Policy(retries=1, memory_limit=1 << 30)
    error = death_error("worker 3 of pool 'p'", "task 1 f()", deaths[1], failed(policy, deaths=deaths))
    assert isinstance(error, PoisonTask)
    assert error.certificates == deaths
    assert error.certificate is deaths[1]
    assert "has killed 2 workers, the last one worker 3 of pool 'p' (pid 6): exit code 3" in str(error)
    assert "its memory limit was 1073741824 bytes" in str(error)


def test_a_death_says_who_how_and_what() -> None:
    certificate = Certificate(812, "worker", -9)
    error = death_error("worker 3 of pool 'p'", "task 41 resize('a.png')", certificate, failed())
    assert isinstance(error, WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.certificate is certificate
    assert str(error) == (
        "worker 3 of pool 'p' (pid 812) died: SIGKILL while running task 41 resize('a.png'); "
        "its certificate is in .certificate"
    )


def test_a_timeout_is_the_standard_librarys_and_the_builtin_one() -> None:
    late = failed(Policy(timeout=0.5), timeout=True)
    error = death_error("worker 3 of pool 'p'", "task 1 f()", Certificate(5, "", -9), late)
    assert isinstance(error, TaskTimeout)
    assert isinstance(error, TimeoutError)
    assert "longer than its timeout of 0.5 s" in str(error)
