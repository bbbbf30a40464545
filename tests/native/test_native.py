"""The native core without Python: interleavings explored, threads under sanitizers, processes killed.

Each program includes the real headers of `_native/c` and is compiled here with the system's compiler. Stress and kills
are bounded in time by the first argument. An exploration goes to its stated bound, however long that takes, and on from
there while the time lasts. MANYCORE_NATIVE_SECONDS makes all of it longer.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "src" / "manycore" / "_native" / "c"  # a wheel does not carry them
SECONDS = float(os.environ.get("MANYCORE_NATIVE_SECONDS", "1"))
DEEPER = SECONDS if "MANYCORE_NATIVE_SECONDS" in os.environ else 0  # seconds a scenario, after its stated bound
CC = shutil.which(os.environ.get("CC", "cc"))

FLAGS = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{HEADERS}", f"-I{HERE}"]
EXPLORE = ["-O2", "-Wno-unused-value", "-Wno-clobbered", "-Wno-unused-but-set-variable", "-U_FORTIFY_SOURCE"]
THREAD = ["-O1", "-fsanitize=thread", "-Wno-tsan"]  # it does not see fences, and says so
ADDRESS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

pytestmark = [
    pytest.mark.skipif(CC is None, reason="no C compiler"),
    pytest.mark.timeout(180 + 60 * SECONDS),
]


def build(folder: Path, source: Path, flags: list[str]) -> Path:
    """Compiles one program; its path."""
    program = folder / source.stem
    done = subprocess.run(
        [str(CC), *FLAGS, *flags, str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def run(program: Path, *arguments: object) -> str:
    """What the program prints, once it has ended well.

    Addresses are not randomised: ThreadSanitizer of older compilers does not know the layouts of newer kernels.
    """
    command = [str(program), *map(str, arguments)]
    setarch = shutil.which("setarch")
    if setarch is not None:
        command = [setarch, platform.machine(), "-R", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170 + 60 * SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require_sanitizer(folder: Path, flags: list[str]) -> None:
    """Skips where the sanitizer's runtime is not installed or does not start."""
    source = folder / "probe.c"
    source.write_text("int main(void) { return 0; }\n")
    try:
        run(build(folder, source, flags))
    except AssertionError as error:
        pytest.skip(f"{flags[1]} does not work here: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("explore_*.c")))
def test_every_order_of_a_few_steps_is_right(name: str, tmp_path: Path) -> None:
    print(run(build(tmp_path, HERE / f"{name}.c", EXPLORE), DEEPER))


@pytest.mark.parametrize("flags", [THREAD, ADDRESS], ids=["thread", "address"])
@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("stress_*.c")))
def test_threads_under_a_sanitizer(name: str, flags: list[str], tmp_path: Path, seed: int) -> None:
    require_sanitizer(tmp_path, flags)
    print(run(build(tmp_path, HERE / f"{name}.c", flags), SECONDS, seed % 1000000))


@pytest.mark.parametrize("name", sorted(path.stem for path in HERE.glob("kill_*.c")))
def test_a_process_that_is_killed_anywhere_leaves_what_can_be_repaired(name: str, tmp_path: Path, seed: int) -> None:
    print(run(build(tmp_path, HERE / f"{name}.c", ["-O2"]), SECONDS, 10000, seed % 1000000))
