"""PyTorch: tensors and models in tasks, in functions that several workers run, in shared memory; its DataLoader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libraries.programs import run

FACES = ["Pool", "ProcessPoolExecutor"]


@pytest.mark.parametrize("face", FACES)
def test_tensors_arrive_as_they_were(face: str, tmp_path: Path) -> None:
    program = f"""
        import copy
        import torch
        import manycore

        grid = torch.arange(24.0).reshape(4, 6)
        images = torch.randn(2, 3, 8, 8)
        values = [
            *(grid, grid.T, grid[1], grid[:, ::2], grid.expand(2, 4, 6)),
            *(torch.tensor(3), torch.empty(0, 3), torch.zeros(())),
            *(images.to(memory_format=torch.channels_last), torch.randn(1000, 1000)),
            *(grid.to(torch.bfloat16), grid > 3, torch.arange(5, dtype=torch.int8)),
            *(torch.complex(grid, grid), torch.complex(grid, grid).conj()),
            *(torch.ones(3, requires_grad=True), torch.nn.Parameter(torch.ones(2))),
            *(grid.to_sparse(), grid.to_sparse_csr()),
        ]

        def plain(value):
            return value.to_dense().resolve_conj()

        def same(left, right):
            assert (type(left), left.dtype, left.layout) == (type(right), right.dtype, right.layout), (left, right)
            assert left.requires_grad == right.requires_grad, left
            assert torch.equal(plain(left), plain(right)), (left, right)

        def back(value):
            return value

        def changed(value):
            value += 1  # it can be written to
            return value.sum()

        with manycore.{face}(2) as pool:
            for value, got in zip(values, pool.map(back, values)):
                same(value, got)
            rows = torch.randn(200, 5000)
            assert torch.equal(torch.stack(list(pool.map(torch.sum, rows))), torch.stack([row.sum() for row in rows]))
            assert not rows.is_shared()
            ones = torch.ones(500_000)
            assert list(pool.map(changed, [ones] * 3)) == [1_000_000.0] * 3
            assert ones.sum() == 500_000
            try:
                list(pool.map(back, [torch.ones(2, requires_grad=True) * 2]))
            except manycore.TaskPicklingError as error:
                assert "detach" in str(error)
            else:
                raise AssertionError("no error")
    """
    run(program, tmp_path, "torch", "numpy")


@pytest.mark.parametrize("face", FACES)
def test_a_model_that_a_function_reads_is_there_in_every_worker(face: str, tmp_path: Path) -> None:
    program = f"""
        import os
        import signal
        import time
        import torch
        import manycore

        layers = [torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300), torch.nn.Linear(300, 2)]
        model = torch.nn.Sequential(*layers).eval()
        batches = [torch.randn(4, 300) for _ in range(40)]

        def predict(batch):
            time.sleep(0.01)  # so that both workers have some
            with torch.no_grad():
                return os.getpid(), model(batch)

        def check(outcomes):
            with torch.no_grad():
                assert all(torch.allclose(got, model(batch), atol=1e-6) for (_, got), batch in zip(outcomes, batches))
            return {{pid for pid, _ in outcomes}}

        with manycore.{face}(2) as pool:
            pids = check(list(pool.map(predict, batches)))
            assert len(pids) == 2 and os.getpid() not in pids
            os.kill(pids.pop(), signal.SIGKILL)
            check(list(pool.map(predict, batches)))  # by a new worker as well
            for parameter in model.parameters():
                parameter.data.zero_()
            check(list(pool.map(predict, batches)))  # with the model as it is now
        assert not any(parameter.is_shared() for parameter in model.parameters())
        check(manycore.map(lambda batch: predict(batch), batches))
    """
    run(program, tmp_path, "torch", "numpy")


@pytest.mark.parametrize("method", ["zygote", "fork", "spawn"])
def test_what_is_in_shared_memory_is_shared(method: str, tmp_path: Path) -> None:
    program = f"""
        import torch
        import manycore

        def add(tensor, count):
            tensor += count

        if __name__ == "__main__":
            context = manycore.get_context("{method}")
            shared = torch.zeros(1000).share_memory_()
            model = torch.nn.Linear(2, 1)
            model.share_memory()
            weight = model.weight.detach().clone()
            process = context.Process(target=add, args=(shared, 1))
            process.start()
            process.join()
            assert process.exitcode == 0 and shared.sum() == 1000
            with context.Pool(2) as pool:
                pool.starmap(add, [(shared, 2), (shared, 3), (shared[:500], 10)], chunksize=1)
                assert shared[:500].eq(16).all() and shared[500:].eq(6).all()
                pool.map(lambda number: add(shared, number), [1, 1, 1], chunksize=1) if "{method}" == "zygote" else None
                pool.starmap(add, [(model.weight.data, 1.0)])
            assert torch.allclose(model.weight, weight + 1)
            queue = context.Queue()
            queue.put((shared, torch.ones(3)))
            got, ones = queue.get()
            got.zero_()
            assert shared.sum() == 0 and ones.sum() == 3
    """
    run(program, tmp_path, "torch", "numpy")


def test_a_broadcast_brings_a_tensor_to_all(tmp_path: Path) -> None:
    program = """
        import torch
        import manycore

        def listen(broadcast, ready):
            receiver = broadcast.subscribe()
            ready.wait()
            return float(receiver.recv().sum())

        broadcast, ready = manycore.Broadcast(), manycore.Barrier(3)
        with manycore.ProcessPoolExecutor(2) as pool:
            futures = [pool.submit(listen, broadcast, ready) for _ in range(2)]
            ready.wait()
            broadcast.send(torch.ones(200_000))
            assert [future.result() for future in futures] == [200_000.0] * 2
    """
    run(program, tmp_path, "torch", "numpy")


def test_its_loader_takes_our_context(tmp_path: Path) -> None:
    program = """
        import torch
        import manycore
        from torch.utils.data import DataLoader, Dataset

        class Squares(Dataset):
            def __init__(self, bad=-1):
                self.bad = bad

            def __len__(self):
                return 60

            def __getitem__(self, index):
                if index == self.bad:
                    raise ValueError("no such square")
                return torch.full((32, 32), float(index)), index * index

        manycore.set_forkserver_preload(["torch", "torch.utils.data"])
        options = dict(batch_size=8, num_workers=2, multiprocessing_context=manycore.get_context())
        for persistent in (False, True):
            loader = DataLoader(Squares(), persistent_workers=persistent, **options)
            for _ in range(2):
                seen = [(float(image[0, 0]), int(square)) for batch in loader for image, square in zip(*batch)]
                assert seen == [(index, index * index) for index in range(60)]
        del loader
        try:
            for _ in DataLoader(Squares(bad=30), **options):
                pass
        except ValueError as error:
            assert "no such square" in str(error)
        else:
            raise AssertionError("no error")
    """
    run(program, tmp_path, "torch", "numpy")
