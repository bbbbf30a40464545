"""Rewrites the interpreter's suites for manycore.

    test._test_multiprocessing               every word `multiprocessing` becomes `manycore`
    test.test_multiprocessing_main_handling  the same, in the programs that it writes too
    test.test_concurrent_futures             `futures.ProcessPoolExecutor` becomes manycore's, and the contexts too

The results are modules in a scratch folder, imported by the children (child.py) and by the processes which these
start. A part of multiprocessing that manycore does not have yet is taken from the standard library, and said.
"""

from __future__ import annotations

import json
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import manycore

SITE = str(Path(manycore.__file__).parents[1])
TESTS = Path(sysconfig.get_paths()["stdlib"]) / "test"

PREPARE = "conformance_prepare"  # the generated module that fills in what manycore lacks
MULTIPROCESSING = "conformance_test_multiprocessing"  # a test looks for a file name that ends so
MAIN_HANDLING = "conformance_main_handling"
FUTURES = "conformance_futures"
SUITE = "conformance_suite"  # what the children load: only test classes

FILL_IN = '''\
"""Makes a suite importable where manycore lacks what the suite touches at import. FILLED says what."""
import importlib, multiprocessing as standard, sys, weakref
import multiprocessing.process, multiprocessing.util
import manycore
FILLED = []
for name in ["util", "process", "dummy", "dummy.connection", "heap", "resource_tracker", "connection", "context",
             "managers", "pool", "queues", "reduction", "shared_memory", "sharedctypes", "synchronize", "spawn",
             "forkserver", "resource_sharer"]:
    try:
        module = importlib.import_module("manycore." + name)
    except ImportError:
        module = sys.modules["manycore." + name] = importlib.import_module("multiprocessing." + name)
        FILLED.append(name + ".py")
    if "." not in name:
        setattr(manycore, name, module)
for name in standard.__all__:
    if not hasattr(manycore, name):
        setattr(manycore, name, getattr(standard, name))
        FILLED.append(name)
for module, name in (("process", "_dangling"), ("process", "_cleanup"), ("util", "_cleanup_tests"),
                     ("util", "SUBWARNING"), ("util", "abstract_sockets_supported")):
    if not hasattr(sys.modules["manycore." + module], name):
        setattr(sys.modules["manycore." + module], name, getattr(sys.modules["multiprocessing." + module], name))
'''


@dataclass(frozen=True)
class Suite:
    """A rewritten suite: the folder that its children import from, and the module that holds its classes."""

    name: str
    folder: Path
    module: str
    prefix: str = ""  # only classes whose names begin so


def is_there(suite: str) -> bool:
    """Whether this interpreter ships the suite; many distributions leave it out."""
    return {
        "multiprocessing": TESTS / "_test_multiprocessing.py",
        "main": TESTS / "test_multiprocessing_main_handling.py",
        "futures": TESTS / "test_concurrent_futures" / "util.py",
    }[suite].is_file()


def write(suite: str, folder: Path, start_method: str) -> Suite:
    """Writes one suite for one start method.

    Args:
        suite: `multiprocessing`, `main` (scripts, `-m`, zip files, packages) or `futures`.
        folder: An empty scratch folder.
        start_method: One of `manycore.get_all_start_methods()`; `main` goes through all of them itself.

    Returns:
        What the runner needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{PREPARE}.py").write_text(FILL_IN)
    if suite == "futures":
        return _write_futures(folder, start_method)
    for name in ("mp_fork_bomb.py", "mp_preload.py"):
        text = _rename((TESTS / name).read_text(), folder).replace('"test.mp_preload"', '"mp_preload"')
        (folder / name).write_text(f"import sys; sys.path[1:1] = {[str(folder), SITE]!r}\n{text}")
    text = _rename((TESTS / "_test_multiprocessing.py").read_text(), folder)
    # The wording of a message, not a name.
    text = text.replace("unclosed running manycore pool", "unclosed running .* pool")
    (folder / f"{MULTIPROCESSING}.py").write_text(f"import {PREPARE}\n{text}")
    if suite == "main":
        text = _rename((TESTS / "test_multiprocessing_main_handling.py").read_text(), folder)
        (folder / f"{MAIN_HANDLING}.py").write_text(f"import {PREPARE}\n{text}")
        return Suite("main", folder, MAIN_HANDLING)
    (folder / f"{SUITE}.py").write_text(
        f"import {MULTIPROCESSING} as suite\nsuite.install_tests_in_module_dict(globals(), {start_method!r})\n"
    )
    return Suite(f"multiprocessing, {start_method}", folder, SUITE)


def _rename(text: str, folder: Path) -> str:
    paths = f"import sys; sys.path[1:1] = {json.dumps([str(folder), SITE])}; "
    text = text.replace(
        "'from test._test_multiprocessing import", f"'{paths}from {MULTIPROCESSING} import"
    )  # a program that runs with -E -S
    text = text.replace("test._test_multiprocessing", MULTIPROCESSING)
    text = text.replace("test.test_multiprocessing_forkserver", SUITE)
    return re.sub(r"(?<![\w.])multiprocessing(?!\w)", "manycore", text)


def _write_futures(folder: Path, start_method: str) -> Suite:
    """The classes for `spawn` stand for every start method: their context is the one that is asked for."""
    package = folder / FUTURES
    package.mkdir()
    paths = f"import sys; sys.path[1:1] = {[str(folder), SITE]!r}; "
    modules = []
    for source in sorted((TESTS / "test_concurrent_futures").glob("*.py")):
        if source.stem in {"test_thread_pool", "test_interpreter_pool", "test_future"}:
            continue
        if source.stem == "__init__":
            (package / source.name).write_text("")
            continue
        text = source.read_text().replace("futures.ProcessPoolExecutor", "manycore.ProcessPoolExecutor")
        text = text.replace('ctx = "spawn"', f"ctx = {start_method!r}")
        # Programs that tests start with -I, which leaves no way in but sys.path.
        text = text.replace(
            "from concurrent.futures import {executor_type}", paths + "from manycore import {executor_type}"
        )
        text = re.sub(r"from test\.test_concurrent_futures(\.\w+)? import", rf"{paths}from {FUTURES}\1 import", text)
        text = re.sub(r"(?<![\w.])multiprocessing(?!\w)", "manycore", text)
        (package / source.name).write_text(f"import {PREPARE}, manycore\n{text}")
        if source.stem.startswith("test_"):
            modules.append(source.stem)
    (folder / f"{SUITE}.py").write_text("".join(f"from {FUTURES}.{name} import *\n" for name in modules))
    return Suite(f"concurrent.futures, {start_method}", folder, SUITE, prefix="ProcessPoolSpawn")


def remove(folder: Path) -> None:
    """Removes a scratch folder, whatever its tests left in it."""
    shutil.rmtree(folder, ignore_errors=True)
