"""Which function is meant, and what is said where none is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manycore._cli.exits import BAD_USAGE, CommandError
from manycore._cli.target import resolve
from manycore._cli.task import load_module


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    modules, paths = set(sys.modules), list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(text: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        resolve(text)
    assert caught.value.exit_code == BAD_USAGE
    assert "\n" not in caught.value.message
    return caught.value


def test_a_module_in_the_current_folder(folder: Path) -> None:
    write(folder / "mc_pkg/part.py", "def f(x): return x\nclass C:\n    @staticmethod\n    def m(x): return x\n")
    assert resolve("mc_pkg.part:f") == ("mc_pkg.part", "f", None)
    assert resolve("mc_pkg.part:C.m") == ("mc_pkg.part", "C.m", None)
    assert resolve("os.path:getsize").module == "os.path"


def test_a_file_is_imported_under_its_own_name_with_its_neighbours(folder: Path) -> None:
    write(folder / "sub/mc_neighbour.py", "value = 7")
    write(folder / "sub/mc_work.py", "import mc_neighbour\ndef f(x): return mc_neighbour.value")
    assert resolve("sub/mc_work.py:f") == ("mc_work", "f", None)
    assert sys.path[0] == str(folder / "sub")


@pytest.mark.parametrize("name", ["json.py", "my-work.py", "class.py", "2nd.py", "script"])
def test_a_file_that_cannot_be_imported_by_its_name_is_loaded_from_its_path(folder: Path, name: str) -> None:
    write(folder / "sub" / name, "def f(x): return 'mine'")
    target = resolve(f"sub/{name}:f")
    assert target.path == str(folder / "sub" / name)
    assert target.module.isidentifier()
    assert load_module(target).f(1) == "mine"


def test_a_file_named_as_an_installed_module_hides_nothing(folder: Path) -> None:
    write(folder / "click.py", "def f(x): return 'mine'")
    target = resolve("click.py:f")
    assert target.path is not None
    assert load_module(target).f(1) == "mine"
    assert hasattr(sys.modules["click"], "echo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mc_w", "FUNCTION is 'module:name' or 'file.py:name', not 'mc_w'"),
        ("mc_w.siz", "did you mean 'mc_w:siz'?"),
        ("mc_w.py:siz", "there is no 'siz' in mc_w.py; did you mean 'size'?"),
        ("mc_w.py:zzz", "there is no 'zzz' in mc_w.py; it has area, later, size"),
        ("mc_w.py:size.inner", "there is no 'inner' in mc_w.py.size"),
        ("mc_w.py:NUMBER", "mc_w.py:NUMBER is of type int, which cannot be called"),
        ("mc_w.py:later", "is an async function"),
        ("mc_x.py:size", "there is no file 'mc_x.py'; did you mean 'mc_w.py'?"),
        ("jsn:loads", "there is no module 'jsn'; did you mean 'json'?"),
        ("json.nosuch:loads", "there is no module 'json.nosuch'"),
        ("sub/:size", "'sub/' is not a file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder: Path, text: str, message: str) -> None:
    write(folder / "mc_w.py", "NUMBER = 3\ndef size(x): pass\ndef area(x): pass\nasync def later(x): pass\n")
    (folder / "sub").mkdir()
    error = refusal(text)
    assert message in error.message
    assert not error.detail


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import mc_absent_thing", "ModuleNotFoundError: No module named 'mc_absent_thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_to_import_shows_its_own_traceback(folder: Path, source: str, message: str) -> None:
    write(folder / "mc_bad.py", source)
    error = refusal("mc_bad.py:f")
    assert error.message.startswith(f"cannot import mc_bad.py: {message}")
    assert error.detail.count("Traceback (most recent call last)") == ("SyntaxError" not in message)
    assert error.detail.rstrip().endswith(message.partition(" (")[0])
    assert "mc_bad.py" in error.detail
    assert "manycore/_cli" not in error.detail
    assert "importlib" not in error.detail


def test_a_relative_import_says_how_to_name_the_module(folder: Path) -> None:
    write(folder / "mc_p/__init__.py", "")
    write(folder / "mc_p/part.py", "from . import other")
    assert "name it as a module of its package" in refusal("mc_p/part.py:f").message
