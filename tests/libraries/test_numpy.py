"""NumPy: independent and repeatable streams of random numbers."""

from __future__ import annotations

from pathlib import Path

from tests.libraries.programs import run


def test_seeds_are_spawned_here_and_drawn_from_there(tmp_path: Path) -> None:
    program = """
        import manycore
        import numpy as np

        def draw(seed):
            return np.random.default_rng(seed).random(3).tolist()

        seeds = np.random.SeedSequence(1).spawn(8)
        assert manycore.map(draw, seeds) == [draw(seed) for seed in seeds]
        with manycore.Pool(4) as pool:  # and the old global state is not the same in all of them
            assert len(set(pool.map(lambda _: np.random.rand(), range(8), chunksize=2))) == 8
    """
    run(program, tmp_path, "numpy")
