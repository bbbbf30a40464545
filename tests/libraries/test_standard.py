"""The standard library's own users of processes, beside us and over us."""

from __future__ import annotations

from pathlib import Path

from tests.libraries.programs import run


def test_futures_of_every_kind_are_awaited_together(tmp_path: Path) -> None:
    program = """
        import asyncio, multiprocessing.pool
        import concurrent.futures as cf
        import manycore

        def main():
            context = manycore.get_context()
            with (
                cf.ProcessPoolExecutor(1, mp_context=context) as theirs,
                manycore.ProcessPoolExecutor(1) as ours,
                cf.ThreadPoolExecutor(1) as threads,
            ):
                executors = (theirs, ours, threads)
                futures = [executor.submit(abs, -n) for n in range(20) for executor in executors]
                assert sum(future.result() for future in cf.as_completed(futures, timeout=30)) == 570
                done, rest = cf.wait([executor.submit(abs, -1) for executor in executors], timeout=30)
                assert (len(done), len(rest)) == (3, 0)
                done, _ = cf.wait([ours.submit(abs, -1), cf.Future()], 30, cf.FIRST_COMPLETED)
                assert [future.result() for future in done] == [1]

                async def both():
                    loop = asyncio.get_running_loop()
                    return await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, 5) for executor in executors))

                assert asyncio.run(both()) == [32, 32, 32]
            with multiprocessing.pool.Pool(1, context=context) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]

        if __name__ == "__main__":
            main()
    """
    run(program, tmp_path)


def test_a_program_of_multiprocessing_with_its_import_changed(tmp_path: Path) -> None:
    program = """
        import manycore as multiprocessing
        from manycore import Lock, Manager, Pool, Process, Queue, Value, cpu_count, shared_memory
        from manycore.pool import ThreadPool

        def work(queue, value, lock):
            with lock:
                value.value += 1
            queue.put(multiprocessing.current_process().name)

        if __name__ == "__main__":
            multiprocessing.freeze_support()
            multiprocessing.set_start_method("spawn", force=True)
            queue, value, lock = Queue(), Value("i", 0), Lock()
            processes = [Process(target=work, args=(queue, value, lock), name=f"P{n}") for n in range(2)]
            for process in processes:
                process.start()
            assert sorted(queue.get(timeout=30) for _ in processes) == ["P0", "P1"]
            for process in processes:
                process.join()
            assert value.value == 2 and [process.exitcode for process in processes] == [0, 0]
            with Manager() as manager, Pool(1) as pool, ThreadPool(1) as threads:
                shared = manager.dict()
                shared.update(pool.map(lambda n: (n, -n), range(3)))
                assert threads.apply(dict, (shared,)) == {0: 0, 1: -1, 2: -2}
    """
    run(program, tmp_path)
