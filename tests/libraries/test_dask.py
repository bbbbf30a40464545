"""dask: its scheduler of processes, over a pool that it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libraries.programs import run


@pytest.mark.parametrize("pool", ["ProcessPoolExecutor", "Pool"])
def test_a_graph_runs_in_our_workers(pool: str, tmp_path: Path) -> None:
    program = f"""
        import os
        import dask
        import manycore

        def inc(x):
            return x + 1, os.getpid()

        @dask.delayed
        def fail(x):
            return 1 // x

        with manycore.{pool}(2) as pool, dask.config.set(pool=pool, scheduler="processes"):
            parts = dask.compute(*[dask.delayed(inc)(n) for n in range(20)])
            assert [number for number, _ in parts] == list(range(1, 21))
            assert os.getpid() not in dict(parts).values()
            total = dask.delayed(sum)([dask.delayed(lambda n: n * n)(n) for n in range(10)])
            assert total.compute() == 285
            try:
                dask.delayed(inc)(fail(0)).compute()
            except ZeroDivisionError as error:
                assert "in fail" in str(error) or "in fail" in "".join(map(str, error.args))
            else:
                raise AssertionError("no error")
            assert total.compute() == 285
    """
    run(program, tmp_path, "dask")
