"""Where this machine cannot compile, the build says in one line what to install."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BACKEND = ROOT / "build_backend" / "manycore_build.py"

pytest.importorskip("setuptools", "77", reason="the build backend needs setuptools, which this environment lacks")
if not BACKEND.exists():
    pytest.skip("the tests run without the source tree", allow_module_level=True)


@pytest.fixture
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manycore_build", BACKEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_this_machine_can_build(backend: ModuleType) -> None:
    assert backend.missing_tool() is None


def test_no_compiler_is_one_line(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    message = backend.missing_tool()
    assert "'no-such-compiler'" in message
    assert "apt install gcc" in message
    assert "\n" not in message


def test_no_headers_is_one_line(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    message = backend.missing_tool()
    assert f"{tmp_path}/Python.h" in message
    assert f"python{sys.version_info.major}.{sys.version_info.minor}-dev" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable", "build_wheel", "build_editable"]
)
def test_every_hook_that_compiles_asks_first(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hook: str
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    arguments = [str(tmp_path)] if hook.startswith("build") else []
    with pytest.raises(SystemExit, match="needs a C compiler"):
        getattr(backend, hook)(*arguments)


def test_an_installer_shows_that_line_and_no_traceback(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(BACKEND.parent)!r}); import manycore_build as b; b.build_wheel('.')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"CC": "no-such-compiler", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("manycore needs a C compiler and found none ('no-such-compiler')")
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(180)
def test_a_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    copy = tmp_path / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    program = "import sys; sys.path.insert(0, 'build_backend'); import manycore_build as b; print(b.build_sdist('out'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(copy / "out" / done.stdout.splitlines()[-1]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    needed = {
        name
        for name in files
        if name.startswith(("src/", "build_backend/", "tests/")) or name in {"pyproject.toml", "LICENSE", "README.md"}
    }
    assert needed - packed == set()
    generated = {name for name in packed if name.startswith("src/manycore/_native/") and name.endswith((".c", ".so"))}
    assert generated - needed == set()
