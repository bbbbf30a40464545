"""Every exception survives a pickle, and is caught by what programs for the standard library catch."""

from __future__ import annotations

import builtins
import concurrent.futures
import concurrent.futures.process
import multiprocessing
import pickle

import pytest

from manycore import errors

CLASSES = [
    value
    for name in errors.__all__
    if isinstance(value := getattr(errors, name), type) and issubclass(value, BaseException)
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", CLASSES)
def test_an_exception_survives_pickling(cls: type[BaseException], protocol: int) -> None:
    before = cls("worker 3 (pid 812) died")
    before.__dict__.update(note="kept")
    after = pickle.loads(pickle.dumps(before, protocol))
    assert type(after) is cls
    assert after.args == before.args
    assert str(after) == str(before)
    assert after.__dict__ == before.__dict__


@pytest.mark.parametrize("cls", CLASSES)
def test_an_exception_survives_pickling_twice(cls: type[BaseException]) -> None:
    before = cls("said")
    once = pickle.loads(pickle.dumps(before))
    twice = pickle.loads(pickle.dumps(once))
    assert (type(twice), twice.args, str(twice)) == (cls, before.args, str(before))


def test_what_an_exception_knows_survives_too() -> None:
    died = pickle.loads(pickle.dumps(errors.WorkerDied("worker 3 died", {"signal": 9})))
    assert died.certificate == {"signal": 9}
    assert str(died) == "worker 3 died"
    owner = pickle.loads(pickle.dumps(errors.OwnerDied("the owner died", 812)))
    assert owner.owner_pid == 812
    assert str(owner) == "the owner died"


@pytest.mark.parametrize(
    ("ours", "caught"),
    [
        (errors.PoolClosed, ValueError),  # multiprocessing.Pool
        (errors.PoolClosed, RuntimeError),  # ProcessPoolExecutor.submit
        (errors.PoolBroken, concurrent.futures.BrokenExecutor),
        (errors.WorkerDied, concurrent.futures.process.BrokenProcessPool),
        (errors.TaskTimeout, multiprocessing.TimeoutError),
        (errors.TaskTimeout, builtins.TimeoutError),
        (errors.TaskTimeout, concurrent.futures.TimeoutError),
        (errors.TaskPicklingError, pickle.PicklingError),
        (errors.ResultPicklingError, pickle.PicklingError),
        (errors.LaunchError, OSError),
        (errors.ChannelClosed, EOFError),
        (errors.ChannelClosed, ValueError),
        (errors.ManagerDied, EOFError),
        (errors.OwnerDied, multiprocessing.ProcessError),
    ],
)
def test_clauses_written_for_the_standard_library_catch_ours(
    ours: type[BaseException], caught: type[BaseException]
) -> None:
    assert issubclass(ours, caught)


def test_the_standard_librarys_own_are_the_same_objects() -> None:
    for name in ("ProcessError", "TimeoutError", "BufferTooShort", "AuthenticationError"):
        assert getattr(errors, name) is getattr(multiprocessing, name)
