"""Calls and maps in event loops: asyncio's, trio's, and anyio's over both."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import manycore

Run = Callable[[Callable[[], Awaitable[Any]]], Any]


def _asyncio(function: Callable[[], Any]) -> Any:
    return asyncio.run(function())


def _trio(function: Callable[[], Any]) -> Any:
    return pytest.importorskip("trio", reason="trio is not installed").run(function)


def _anyio(backend: str) -> Run:
    def run(function: Callable[[], Any]) -> Any:
        if backend == "trio":
            pytest.importorskip("trio", reason="trio is not installed")
        return pytest.importorskip("anyio", reason="anyio is not installed").run(function, backend=backend)

    return run


LOOPS = {"asyncio": _asyncio, "trio": _trio, "anyio-asyncio": _anyio("asyncio"), "anyio-trio": _anyio("trio")}


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Run:
    run: Run = LOOPS[request.param]
    return run


def anyio() -> ModuleType:
    module: ModuleType = pytest.importorskip("anyio", reason="anyio is not installed")
    return module


def square(n: int) -> int:
    return n * n


def fail(n: int) -> int:
    raise LookupError(n)


def stay(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_calls_can_be_awaited(loop: Run) -> None:
    with manycore.Pool(2) as pool, manycore.ProcessPoolExecutor(2) as executor:

        async def main() -> list[int]:
            done = [
                await pool.apply_async(square, (2,)),
                await pool.submit(square, 3),
                await executor.submit(square, 4),
            ]
            finished = executor.submit(square, 5)
            finished.result()
            done.append(await finished)
            done += await pool.map_async(square, range(3))
            with pytest.raises(LookupError):
                await pool.submit(fail, 1)
            return done

        assert loop(main) == [4, 9, 16, 25, 0, 1, 4]


def test_maps_can_be_iterated(loop: Run) -> None:
    with manycore.Pool(2) as pool, manycore.ProcessPoolExecutor(2) as executor:

        async def main() -> None:
            assert [n async for n in pool.imap(square, range(1000))] == [n * n for n in range(1000)]
            assert {n async for n in pool.imap_unordered(square, range(100))} == {n * n for n in range(100)}
            assert [n async for n in executor.map(square, range(100))] == [n * n for n in range(100)]  # type: ignore[attr-defined]
            assert [n async for n in executor.map(square, [], buffersize=2)] == []  # type: ignore[attr-defined]
            first = []
            async for n in pool.imap(square, itertools.count()):
                first.append(n)
                if n > 50:
                    break
            assert first == [n * n for n in range(9)]
            with pytest.raises(LookupError):
                async for _ in pool.imap(fail, [7]):
                    pass
            kept = [n async for n in pool.imap(fail, [7], on_error="collect")]
            assert isinstance(kept[0], manycore.Failure)
            assert [n async for n in pool.imap(fail, [7, 8], on_error="skip")] == []

        loop(main)


def test_no_thread_waits() -> None:
    with manycore.Pool(2) as pool:
        pool.apply(square, (1,))

        async def main() -> int:
            before = threading.active_count()
            waiting = [asyncio.ensure_future(_result(pool.submit(time.sleep, 0.2))) for _ in range(200)]
            iterating = [asyncio.ensure_future(_all(pool.imap(time.sleep, [0.01] * 3))) for _ in range(20)]
            await asyncio.sleep(0.05)
            after = threading.active_count()
            for task in (*waiting, *iterating):
                task.cancel()
            await asyncio.gather(*waiting, *iterating, return_exceptions=True)
            return after - before

        assert asyncio.run(main()) == 0


async def _result(future: Awaitable[Any]) -> Any:
    return await future


async def _all(results: Any) -> list[Any]:
    return [result async for result in results]


def test_the_loop_goes_on_meanwhile(loop: Run) -> None:
    turned = manycore.Event()
    with manycore.Pool(1) as pool:

        async def main() -> None:
            ticks = 0
            turned.clear()

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    if ticks == 50:
                        turned.set()
                    await library.sleep(0)

            library = anyio()
            async with library.create_task_group() as group:
                group.start_soon(tick)
                assert await pool.submit(turned.wait, 30)
                waited = ticks
                assert len([n async for n in pool.imap(square, range(100_000))]) == 100_000
                group.cancel_scope.cancel()
            assert waited >= 50
            assert ticks - waited > 10  # results that are there already leave others their turn

        anyio()
        loop(main)


def _gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("face", ["pool", "executor"])
def test_cancelling_the_wait_cancels_the_call(loop: Run, face: str, tmp_path: Path) -> None:
    pool: Any = manycore.Pool(1) if face == "pool" else manycore.ProcessPoolExecutor(1)
    path = tmp_path / "pid"

    async def main() -> None:
        library = anyio()
        running, waiting = pool.submit(stay, path), pool.submit(stay, path)
        async with library.create_task_group() as group:
            group.start_soon(_result, running)
            group.start_soon(_result, waiting)
            while not path.exists() or not path.read_text():
                await library.sleep(0.001)
            group.cancel_scope.cancel()
        assert running.cancelled()
        assert waiting.cancelled()
        assert await pool.submit(square, 3) == 9
        while not _gone(int(path.read_text())):
            await library.sleep(0.001)

    anyio()
    with pool:
        loop(main)


def test_cancelling_the_wait_ends_the_map(loop: Run) -> None:
    read: list[int] = []

    def numbers() -> Any:
        for n in itertools.count():
            read.append(n)
            yield 0.02

    with manycore.Pool(2) as pool:

        async def main() -> None:
            library = anyio()
            with library.move_on_after(0.1):
                async for _ in pool.imap(time.sleep, numbers()):
                    pass
            seen = len(read)
            assert await pool.submit(square, 3) == 9
            assert len(read) == seen
            assert pool.stats().tasks_pending == 0

        anyio()
        loop(main)


@pytest.mark.parametrize("kind", ["imap", "executor's map", "map_async"])
def test_cancelling_the_wait_ends_items_that_run(loop: Run, kind: str, tmp_path: Path) -> None:
    pool: Any = manycore.ProcessPoolExecutor(1) if kind == "executor's map" else manycore.Pool(1)
    path = tmp_path / "pid"

    async def consume() -> None:
        if kind == "map_async":
            await pool.map_async(stay, [path, path])
        else:
            async for _ in (pool.imap if kind == "imap" else pool.map)(stay, [path, path]):
                pass

    async def main() -> None:
        library = anyio()
        async with library.create_task_group() as group:
            group.start_soon(consume)
            while not path.exists() or not path.read_text():
                await library.sleep(0.001)
            group.cancel_scope.cancel()
        assert await pool.submit(square, 3) == 9
        assert _gone(int(path.read_text()))
        assert pool.stats().workers_died == 1

    anyio()
    with pool:
        loop(main)


def test_a_map_has_its_deadline(loop: Run) -> None:
    with manycore.ProcessPoolExecutor(1) as executor:

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async for _ in executor.map(time.sleep, [0, 1], timeout=0.2):  # type: ignore[attr-defined]
                    pass

        loop(main)


def test_a_pool_that_ends_wakes_those_who_wait(loop: Run) -> None:
    async def main() -> None:
        library = anyio()
        pool = manycore.Pool(1)
        caught: list[BaseException] = []

        async def call() -> None:
            try:
                await pool.submit(time.sleep, 60)
            except manycore.PoolClosed as error:
                caught.append(error)

        async def iterate() -> None:
            try:
                async for _ in pool.imap(time.sleep, itertools.repeat(60)):
                    pass
            except manycore.PoolClosed as error:
                caught.append(error)

        async with library.create_task_group() as group:
            group.start_soon(call)
            group.start_soon(iterate)
            await library.sleep(0.05)
            pool.terminate()
        assert len(caught) == 2

    anyio()
    loop(main)


def test_a_future_that_another_cancels_is_seen_as_cancelled() -> None:
    async def main() -> None:
        with manycore.Pool(1) as pool:
            pool.apply_async(time.sleep, (60,))
            future = pool.submit(square, 1)
            waiting = asyncio.ensure_future(_result(future))
            await asyncio.sleep(0)
            assert future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())


def test_results_of_many_waits_are_each_their_own(loop: Run) -> None:
    with manycore.Pool(2) as pool:

        async def main() -> list[int]:
            library = anyio()
            results: dict[int, int] = {}

            async def one(n: int) -> None:
                results[n] = await pool.submit(square, n)

            async with library.create_task_group() as group:
                for n in range(500):
                    group.start_soon(one, n)
            return [results[n] for n in range(500)]

        anyio()
        assert loop(main) == [n * n for n in range(500)]
