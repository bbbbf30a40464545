"""The code of callers' modules, read by the zygote and run by each child: an import means what it does without."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from importlib.machinery import FileFinder, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from manycore._launch import launch
from manycore._launch.codes import Codes, loaded

HERE = "tests.unit.launch_targets:"
ROUNDS = 50  # launches until the zygote, which does so when no request waits, has read what the first had to


class Folder:
    """A folder of the path with modules; `learn` and `load` are the zygote's part and a child's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.codes = Codes()

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return file

    def learn(self, name: str, file: Path) -> None:
        self.codes.learn(name, str(file))

    def knows(self, name: str) -> bool:
        return name in self.codes._known

    def load(self, name: str) -> tuple[types.ModuleType, bool]:
        """The module, and whether its code was there already."""
        asked: list[Any] = []
        find = self.codes.find_spec

        def find_spec(*arguments: Any) -> Any:
            asked.append(find(*arguments))
            return asked[-1]

        self.codes.find_spec = find_spec  # type: ignore[method-assign,assignment]
        try:
            module = importlib.import_module(name)
        finally:
            del self.codes.find_spec
        return module, any(spec is not None and spec.name == name for spec in asked)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    found = Folder(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "earlier"), str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path_hooks", list(sys.path_hooks))
    before = set(sys.modules)
    yield found
    for name in set(sys.modules) - before:
        if name.startswith("codes_"):
            del sys.modules[name]
    importlib.invalidate_caches()


def test_a_module_is_what_it_is_without(folder: Folder) -> None:
    file = folder.write("codes_plain.py", "value = [__name__, __file__]\n")
    usual, known = folder.load("codes_plain")
    assert not known
    del sys.modules["codes_plain"]
    folder.learn("codes_plain", file)
    module, known = folder.load("codes_plain")
    assert known
    assert module is not usual
    for name in ("__name__", "__file__", "__cached__", "__package__", "__doc__", "value"):
        assert getattr(module, name) == getattr(usual, name)
    spec, other = module.__spec__, usual.__spec__
    assert spec is not None
    assert other is not None
    assert type(module.__loader__) is type(usual.__loader__) is SourceFileLoader
    assert vars(module.__loader__) == vars(usual.__loader__)
    for name in ("name", "origin", "cached", "parent", "has_location", "submodule_search_locations"):
        assert getattr(spec, name) == getattr(other, name)


def test_packages_and_what_is_in_them(folder: Folder) -> None:
    package = folder.write("codes_package/__init__.py", "from codes_package import inner\n")
    inner = folder.write("codes_package/inner.py", "value = 7\n")
    folder.learn("codes_package.inner", inner)
    assert not folder.knows("codes_package.inner")  # nobody knows yet where that package is
    folder.learn("codes_package", package)
    folder.learn("codes_package.inner", inner)
    module, known = folder.load("codes_package")
    assert known
    assert module.inner.value == 7
    assert list(module.__path__) == [str(package.parent)]
    assert not folder.knows("codes_package.inner")


def test_a_second_import_reads_the_file(folder: Folder) -> None:
    file = folder.write("codes_twice.py", "value = 1\n")
    folder.learn("codes_twice", file)
    module, known = folder.load("codes_twice")
    assert known
    folder.write("codes_twice.py", "value = 2  # longer\n")
    assert importlib.reload(module).value == 2


def test_a_module_that_was_changed_is_read_anew(folder: Folder) -> None:
    file = folder.write("codes_changed.py", "value = 1\n")
    folder.learn("codes_changed", file)
    assert folder.knows("codes_changed")
    stamp = file.stat()
    folder.write("codes_changed.py", "value = 2\n")  # as long as it was
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000_000))
    module, known = folder.load("codes_changed")
    assert (module.value, known) == (2, False)


def test_a_module_that_is_gone_cannot_be_imported(folder: Folder) -> None:
    file = folder.write("codes_gone.py", "")
    folder.learn("codes_gone", file)
    file.unlink()
    with pytest.raises(ModuleNotFoundError):
        folder.load("codes_gone")


def test_one_that_is_earlier_on_the_path_comes_first(folder: Folder) -> None:
    (folder.path / "earlier").mkdir()
    file = folder.write("codes_shadowed.py", "value = 1\n")
    folder.learn("codes_shadowed", file)
    assert folder.knows("codes_shadowed")
    stamp = (folder.path / "earlier").stat()
    folder.write("earlier/codes_shadowed.py", "value = 2\n")
    os.utime(folder.path / "earlier", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000_000))
    importlib.invalidate_caches()
    module, known = folder.load("codes_shadowed")
    assert (module.value, known) == (2, False)


def test_another_path_is_searched(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = folder.write("codes_path.py", "value = 1\n")
    folder.learn("codes_path", file)
    other = tmp_path_factory.mktemp("other")
    (other / "codes_path.py").write_text("value = 2\n", encoding="utf-8")
    sys.path.insert(0, str(other))
    module, known = folder.load("codes_path")
    assert (module.value, known) == (2, False)


class Shouting(SourceFileLoader):
    def get_code(self, fullname: str) -> types.CodeType:
        return compile("value = 'shouted'", fullname, "exec")


@pytest.mark.parametrize("where", ["earlier/codes_becomes", "codes_becomes"])
def test_a_folder_that_may_become_a_package_is_left_to_the_search(folder: Folder, where: str) -> None:
    (folder.path / where).mkdir(parents=True)
    file = folder.write("codes_becomes.py", "value = 1\n")
    folder.learn("codes_becomes", file)
    folder.write(f"{where}/__init__.py", "value = 2\n")
    module, known = folder.load("codes_becomes")
    assert (module.value, known) == (2, False)


def test_another_folder_behind_the_same_name_is_searched(
    folder: Folder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    releases = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for number, release in enumerate(releases):
        file = release / "codes_released.py"
        file.write_text(f"value = {number}\n", encoding="utf-8")
        for path in (file, release):  # as an archive unpacks them
            os.utime(path, ns=(0, 0))
    current = folder.path / "current"
    current.symlink_to(releases[0])
    sys.path.insert(0, str(current))
    folder.learn("codes_released", current / "codes_released.py")
    assert folder.knows("codes_released")
    current.unlink()
    current.symlink_to(releases[1])
    importlib.invalidate_caches()
    module, known = folder.load("codes_released")
    assert (module.value, known) == (1, False)


def test_a_file_that_changes_between_the_search_and_the_reading_is_read(folder: Folder) -> None:
    file = folder.write("codes_late.py", "value = 1\n")
    folder.learn("codes_late", file)
    spec = folder.codes.find_spec("codes_late")
    assert spec is not None
    assert spec.loader is not None
    file.write_text("value = 22\n", encoding="utf-8")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == 22


def test_who_stands_before_the_search_is_asked(folder: Folder) -> None:
    file = folder.write("codes_preceded.py", "value = 1\n")
    folder.learn("codes_preceded", file)

    class Between:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> Any:
            del path, target
            return importlib.util.spec_from_loader(name, Shouting(name, str(file))) if "preceded" in name else None

    sys.meta_path.insert(sys.meta_path.index(PathFinder), Between)
    module, known = folder.load("codes_preceded")
    assert (module.value, known) == ("shouted", False)


def test_a_loader_that_was_changed_since_loads(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder.write("codes_patched.py", "value = 1\n")
    folder.learn("codes_patched", file)

    def shout(_loader: object, _data: object, path: str, **_more: object) -> types.CodeType:
        return compile("value = 'shouted'", path, "exec")

    monkeypatch.setattr(SourceFileLoader, "source_to_code", shout)
    module, known = folder.load("codes_patched")
    assert (module.value, known) == ("shouted", False)


def test_nothing_is_written_beside_what_is_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = folder.write("codes_unwritten.py", "value = 1\n")
    folder.learn("codes_unwritten", file)
    assert folder.knows("codes_unwritten")
    assert not (folder.path / "__pycache__").exists()
    assert not sys.dont_write_bytecode


def test_a_hook_that_came_since_imports(folder: Folder) -> None:
    file = folder.write("codes_hooked.py", "value = 1\n")
    folder.learn("codes_hooked", file)
    sys.path_hooks.insert(0, FileFinder.path_hook((Shouting, [".py"])))
    sys.path_importer_cache.clear()
    try:
        module, known = folder.load("codes_hooked")
    finally:
        sys.path_importer_cache.clear()
    assert (module.value, known) == ("shouted", False)


def test_a_folder_that_something_else_searches_is_left_to_it(folder: Folder) -> None:
    file = folder.write("codes_zip.py", "value = 1\n")

    class Other(importlib.abc.PathEntryFinder):
        def find_spec(self, fullname: str, target: types.ModuleType | None = None) -> None:
            del fullname, target

    sys.path_importer_cache[sys.path[0]] = Other()
    try:
        folder.learn("codes_zip", file)
    finally:
        del sys.path_importer_cache[sys.path[0]]
    assert not folder.knows("codes_zip")


def test_nothing_is_done_where_the_standard_search_is_not(folder: Folder) -> None:
    file = folder.write("codes_without.py", "")
    sys.meta_path.remove(PathFinder)
    folder.learn("codes_without", file)
    assert not folder.knows("codes_without")
    assert folder.codes not in sys.meta_path


@pytest.mark.parametrize("name", ["codes_elsewhere", "codes_sub.inner", "codes_missing"])
def test_what_the_path_does_not_lead_to_is_not_read(folder: Folder, name: str) -> None:
    there = folder.write("codes_elsewhere.py", "")
    folder.learn(name, there.with_name("other") / "codes_elsewhere.py")
    assert not folder.knows(name)


def test_memory_for_code_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manycore._launch.codes._MOST_BYTES", 1000)
    for number in range(5):
        folder.learn(f"codes_{number}", folder.write(f"codes_{number}.py", "#" * 300))
    assert [folder.knows(f"codes_{number}") for number in range(5)] == [True, True, True, False, False]


class Hostile(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_only_what_came_from_a_file_as_usual_is_told(folder: Folder) -> None:
    folder.write("codes_usual.py", "")
    folder.load("codes_usual")
    sys.modules["codes_made"] = types.ModuleType("codes_made")
    other = folder.write("codes_other.py", "")
    spec = importlib.util.spec_from_loader("codes_other", Shouting("codes_other", str(other)))
    assert spec is not None
    sys.modules["codes_other"] = importlib.util.module_from_spec(spec)
    sys.modules["codes_hostile"] = Hostile("codes_hostile")
    sys.modules["codes_object"] = object()  # type: ignore[assignment]
    sys.modules["codes_odd"] = odd = types.ModuleType("codes_odd")
    odd.__spec__ = True  # type: ignore[assignment]
    names = ["codes_usual", "codes_made", "codes_other", "codes_hostile", "codes_object", "codes_odd", "never", "sys"]
    assert loaded(names) == [("codes_usual", str(folder.path / "codes_usual.py"))]


# -- whole processes ---------------------------------------------------------------------------------------------


def test_children_run_what_the_zygote_has_read_and_each_does_so_itself(folder: Folder) -> None:
    log = folder.path / "log"
    folder.write(
        "codes_told.py", f"import os\nwith open({str(log)!r}, 'a') as file:\n    file.write(f'{{os.getpid()}}\\n')\n"
    )
    for round in range(ROUNDS):
        child = launch(HERE + "import_and_say_who_read", b"codes_told", [])
        status = child.wait(30)
        assert status is not None
        pids = log.read_text(encoding="utf-8").split()
        assert len(pids) == len(set(pids)) == round + 1  # a process each, and none of them the zygote
        if status.exitcode == 77:
            break
        assert status.exitcode == 0
    else:
        pytest.fail("it was never read in advance")


def test_what_can_no_longer_be_read_is_left_to_the_children(folder: Folder) -> None:
    file = folder.write("codes_wrong.py", "value = 1\n")
    for _ in range(3):
        file.write_text("value = 1\n", encoding="utf-8")
        child = launch(HERE + "import_and_spoil", b"codes_wrong", [])
        status = child.wait(30)
        assert status is not None
        assert status.exitcode == 0
    folder.learn("codes_wrong", file)
    assert not folder.knows("codes_wrong")


def test_what_a_child_has_in_its_modules_does_not_change_how_it_ends(folder: Folder) -> None:
    folder.write("codes_strange.py", "import sys\nclass Strange:\n    def __getattr__(self, name):\n        1 / 0\n")
    log = folder.path / "log"
    child = launch(HERE + "import_and_replace", f"codes_strange {log}".encode(), [])
    status = child.wait(30)
    assert status is not None
    assert status.exitcode == 0
    assert log.read_text(encoding="utf-8") == "the exit handler"


def test_long_paths_do_not_keep_the_rest_from_being_learned(folder: Folder) -> None:
    deep = folder.path / ("x" * 200)
    deep.mkdir()
    sys.path.insert(0, str(deep))
    names = [f"codes_long_{number}" for number in range(400)]
    for name in names:
        (deep / f"{name}.py").write_text("", encoding="utf-8")
    for _ in range(ROUNDS):
        child = launch(HERE + "import_all_and_colorsys", " ".join(names).encode(), [])
        status = child.wait(30)
        assert status is not None
        if status.exitcode == 77:
            return
    pytest.fail("a standard module was never learned")
