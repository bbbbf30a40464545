"""joblib over our workers, and joblib's own beside ours."""

from __future__ import annotations

from pathlib import Path

from tests.libraries.programs import run

HEAD = """
import os, threading, time
import joblib
import manycore
import manycore.integrations.joblib
import numpy as np
from joblib import Parallel, delayed

manycore.integrations.joblib.register()

def square(n):
    return n * n, os.getpid()

with joblib.parallel_config(backend="manycore", n_jobs=2):
"""


def over_our_workers(block: str, folder: Path) -> str:
    lines = "".join(f"    {line}\n" for line in block.strip("\n").splitlines())
    return run(HEAD + lines, folder, "joblib", "numpy")[1]


def test_results_errors_and_what_comes_after(tmp_path: Path) -> None:
    """Batches, lambdas, generators; a failed call ends what runs for it, and the next one has its workers."""
    block = """
found = Parallel()(delayed(square)(n) for n in range(3000))
assert [number for number, _ in found] == [n * n for n in range(3000)]
pids = {pid for _, pid in found}
assert os.getpid() not in pids and len(pids) <= 2
assert Parallel()(delayed(lambda n: -n)(n) for n in range(3)) == [0, -1, -2]
assert list(Parallel(return_as="generator")(delayed(abs)(-n) for n in range(9))) == list(range(9))
assert sorted(Parallel(return_as="generator_unordered")(delayed(abs)(-n) for n in range(9))) == list(range(9))
assert joblib.effective_n_jobs(-1) == manycore.cpu_count()

def fail(n):
    if n == 1:
        raise KeyError("told")
    time.sleep(1000)

def raised(*calls, **options):
    began = time.monotonic()
    try:
        Parallel(**options)(calls)
    except Exception as error:
        assert time.monotonic() - began < 30
        return error

error = raised(*(delayed(fail)(n) for n in range(4)))
assert repr(error) == "KeyError('told')" and "in fail" in str(error.__cause__)
assert isinstance(raised(delayed(os.kill)(0, 9), delayed(abs)(1)), manycore.WorkerDied)
assert "lock" in str(raised(delayed(abs)(threading.Lock())))
assert isinstance(raised(delayed(time.sleep)(1000), timeout=0.1), TimeoutError | manycore.TimeoutError)
left = Parallel(return_as="generator")(delayed(time.sleep)(n) for n in (0, 1000, 1000))
next(left)
del left  # what runs is ended: the next call need not wait for it
assert Parallel()(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
"""
    assert over_our_workers(block, tmp_path).count("tasks which were still being processed") == 1


def test_calls_of_several_threads_and_of_a_fork_are_their_own(tmp_path: Path) -> None:
    """A call that fails ends nothing of another's; a forked child has workers of its own."""
    block = """
def slow(n):
    time.sleep(0.01)
    return n

def good():
    sums.append(sum(Parallel(n_jobs=2, backend="manycore")(delayed(slow)(n) for n in range(20))))

sums = []
beside = threading.Thread(target=good)
beside.start()
for _ in range(5):
    try:
        Parallel()(delayed(divmod)(n, 0) for n in range(4))
    except ZeroDivisionError:
        sums.append("failed")
beside.join()
assert sorted(sums, key=str) == [190] + ["failed"] * 5
pid = os.fork()
if pid == 0:
    good()
    os._exit(sums[-1] != 190)
assert os.waitpid(pid, 0)[1] == 0
"""
    over_our_workers(block, tmp_path)


def test_large_arrays_are_there_once_and_mapped_files_are_written_through(tmp_path: Path) -> None:
    block = """
def look(array, n, again):
    return array.flags.writeable, float(array[n]), array is again

table = np.arange(200_000.0)
assert Parallel()(delayed(look)(table, n, again=table) for n in range(4)) == [(False, n, True) for n in range(4)]
table += 1  # between two calls: seen
assert Parallel()(delayed(look)(table, n, again=table) for n in range(2)) == [(False, n + 1, True) for n in range(2)]
assert Parallel(max_nbytes=None)([delayed(look)(table, 0, table)] * 2) == [(True, 1.0, True)] * 2
assert Parallel(max_nbytes="2M")([delayed(look)(table, 0, table)] * 2) == [(True, 1.0, True)] * 2

def fill(part, n):
    part[n] = n + 1

for order, dtype in (("C", "f8"), ("F", "i4")):
    mapped = np.memmap("mapped", dtype, "w+", 128, (300_000, 3), order)
    Parallel()(delayed(fill)(mapped[1:, 2], n) for n in range(4))
    Parallel()(delayed(fill)(mapped[5:7, 2], n) for n in range(2))  # however small it is
    assert mapped[:8, 2].tolist() == [0, 1, 2, 3, 4, 1, 2, 0] and not mapped[:, :2].any()
readable = np.memmap("mapped", "u1", "r")
assert Parallel()(delayed(look)(readable, n, readable) for n in range(2))[0][0] is False
backwards = Parallel()(delayed(look)(mapped[::-1, 2], n, None) for n in (-2, -3))  # a copy
assert [value for _, value, _ in backwards] == [1, 2]
"""
    assert over_our_workers(block, tmp_path) == ""


def test_nested_calls_are_bounded(tmp_path: Path) -> None:
    block = """
def nested(n):
    inside = Parallel(n_jobs=2)(delayed(square)(k) for k in range(n))
    return {pid for _, pid in inside} <= {os.getpid()}

def explicit(n):
    with joblib.parallel_config(backend="manycore"):
        inside = Parallel(n_jobs=2)(delayed(square)(k) for k in range(n))
        return [number for number, _ in inside], joblib.effective_n_jobs(-1)

def threads():
    return os.environ.get("OMP_NUM_THREADS")

assert Parallel()(delayed(nested)(n) for n in range(4)) == [True] * 4  # in threads
share = max(1, manycore.cpu_count() // 2)
assert Parallel()(delayed(explicit)(n) for n in range(3)) == [([k * k for k in range(n)], share) for n in range(3)]
with joblib.parallel_config(backend="manycore", n_jobs=2, inner_max_num_threads=3):
    assert Parallel()(delayed(threads)() for _ in range(2)) == ["3"] * 2
"""
    assert over_our_workers(block, tmp_path) == ""


def test_scikit_learn(tmp_path: Path) -> None:
    program = (
        HEAD
        + """
    from sklearn.datasets import make_classification
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    data = make_classification(200, random_state=0)
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=3, n_jobs=2).fit(*data)
here = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=3).fit(*data)
assert search.best_params_ == here.best_params_ and search.best_score_ == here.best_score_
"""
    )
    run(program, tmp_path, "sklearn")


def test_its_own_backends_are_as_they_were(tmp_path: Path) -> None:
    program = """
        import joblib, math
        import manycore
        from joblib import Parallel, delayed

        def roots(n, backend):
            return Parallel(n_jobs=2, backend=backend)(delayed(math.sqrt)(k * k) for k in range(n))

        if __name__ == "__main__":
            with manycore.ProcessPoolExecutor(1) as executor:
                inside = executor.submit(roots, 3, "loky")
                assert roots(3, "multiprocessing") == roots(3, "threading") == inside.result() == [0, 1, 2]
    """
    run(program, tmp_path, "joblib")
