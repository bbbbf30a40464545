"""The interpreter ends while iterators, and generators around pools, are still alive: at once, and without a word."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAMS = {
    "a map of its own": """
import manycore
squares = manycore.imap(abs, range(1000))
next(squares)
""",
    "an endless one, under spawn": """
import manycore
if __name__ == "__main__":
    manycore.set_start_method("spawn")
    squares = manycore.imap(abs, iter(int, 1), workers=2)
    next(squares)
""",
    "a generator around a pool": """
import manycore

def squares():
    with manycore.Pool(2) as pool:
        yield from pool.imap(abs, range(1000))

mine = squares()
next(mine)
""",
    "a pool's, closed by the program's end": """
import manycore

def squares():
    pool = manycore.Pool(2)
    try:
        yield from pool.imap(abs, range(1000))
    finally:
        pool.close()
        pool.join()

mine = squares()
next(mine)
""",
    "threads that wait for results": """
import itertools, threading, time
import manycore
pool = manycore.Pool(2)
results = pool.imap(time.sleep, itertools.repeat(1000))
sleeper = pool.apply_async(time.sleep, (1000,))
threading.Thread(target=sleeper.get, daemon=True).start()
threading.Thread(target=list, args=(results,), daemon=True).start()
""",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_end_is_prompt_and_silent(program: str) -> None:
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (0, "")
