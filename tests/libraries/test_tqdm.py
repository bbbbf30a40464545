"""tqdm: bars around what a pool yields, bars in workers, and `process_map`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libraries.programs import run


def test_bars_around_results_and_in_workers(tmp_path: Path) -> None:
    program = """
        import asyncio
        import manycore
        from tqdm import tqdm
        from tqdm.asyncio import tqdm as async_tqdm

        def inner(i):
            return sum(tqdm(range(i), position=i, desc=f"bar {i}", leave=True))

        tqdm.set_lock(manycore.RLock())
        with manycore.Pool(2, initializer=tqdm.set_lock, initargs=(tqdm.get_lock(),)) as pool:
            assert sum(tqdm(pool.imap_unordered(abs, range(-100, 0)), total=100, desc="outer")) == 5050
            assert pool.map(inner, range(1, 4)) == [0, 1, 3]

        async def main():
            with manycore.ProcessPoolExecutor(2) as executor:
                futures = [asyncio.wrap_future(executor.submit(abs, -i)) for i in range(20)]
                assert await async_tqdm.gather(*futures, desc="gathered") == list(range(20))

        asyncio.run(main())
    """
    _, said = run(program, tmp_path, "tqdm")
    for bar in ("outer: 100%", "bar 1: 100%", "bar 2: 100%", "bar 3: 100%", "gathered: 100%"):
        assert bar in said
    assert "Error" not in said


@pytest.mark.parametrize(
    ("executor", "lock"),
    [
        ("manycore.ProcessPoolExecutor", "tqdm.auto.tqdm.set_lock(manycore.RLock())"),
        ("functools.partial(manycore.ProcessPoolExecutor, mp_context=manycore.get_context('fork'))", ""),
    ],
)
def test_process_map(executor: str, lock: str, tmp_path: Path) -> None:
    """It gives its executor's initializer a lock: by default, one of the standard library that only forks inherit."""
    program = f"""
        import concurrent.futures as cf, functools
        import manycore
        import tqdm.auto
        from tqdm.contrib.concurrent import process_map

        if __name__ == "__main__":
            cf.ProcessPoolExecutor = {executor}
            {lock}
            assert process_map(abs, range(-100, 0), max_workers=2, chunksize=10) == list(range(100, 0, -1))
    """
    _, said = run(program, tmp_path, "tqdm")
    assert "/100 [" in said
    assert "Error" not in said


def test_the_standard_lock_is_refused_with_what_to_use(tmp_path: Path) -> None:
    program = """
        import concurrent.futures as cf
        import manycore
        from tqdm.contrib.concurrent import process_map

        cf.ProcessPoolExecutor = manycore.ProcessPoolExecutor
        try:
            process_map(abs, range(5), max_workers=2, chunksize=1)
        except manycore.TaskPicklingError as error:
            print(error)
    """
    said, _ = run(program, tmp_path, "tqdm")
    assert said.startswith("initargs[0]: ")
    assert said.endswith("manycore's go to any process\n")
