"""SciPy: `workers=`, which takes the map of a pool."""

from __future__ import annotations

from pathlib import Path

from tests.libraries.programs import run


def test_workers_is_a_map_of_ours(tmp_path: Path) -> None:
    program = """
        import manycore
        from scipy.optimize import brute, differential_evolution, rosen

        def fun(x):
            return rosen(x)

        options = dict(bounds=[(0, 2)] * 3, updating="deferred", seed=1, maxiter=5)
        here = differential_evolution(fun, **options, workers=map)
        with manycore.Pool(1) as pool:  # whose one worker imports all of it as well
            assert (differential_evolution(fun, **options, workers=pool.map).x == here.x).all()
            assert (differential_evolution(lambda x: rosen(x), **options, workers=pool.map).x == here.x).all()
            assert (brute(fun, ((0, 2), (0, 2)), Ns=5, workers=pool.map, finish=None) == [1, 1]).all()
    """
    _, said = run(program, tmp_path, "scipy")
    assert "Traceback" not in said
