"""emcee: `pool=`, whose `map` it calls."""

from __future__ import annotations

from pathlib import Path

from tests.libraries.programs import run


def test_a_sampler_gives_the_same_chain_as_without_a_pool(tmp_path: Path) -> None:
    program = """
        import emcee
        import manycore
        import numpy as np

        def log_probability(x, width):
            return -0.5 * np.sum((x / width) ** 2)

        def chain(pool):
            sampler = emcee.EnsembleSampler(16, 3, log_probability, args=(2.0,), pool=pool)
            sampler.random_state = np.random.RandomState(2).get_state()
            sampler.run_mcmc(np.random.RandomState(1).randn(16, 3), 10)
            return sampler.get_chain()

        here = chain(None)
        with manycore.Pool(1) as pool:  # whose one worker imports all of it as well
            assert (chain(pool) == here).all()
    """
    run(program, tmp_path, "emcee", "numpy")
