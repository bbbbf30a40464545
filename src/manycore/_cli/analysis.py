"""The work that `manycore demo` does: measure one Python source file.

Pure functions of one file, so that serial code, threads and processes do the very same thing. A result
is a handful of numbers and names, whatever the size of the file: what a worker sends back stays small.

Source: McCabe, "A Complexity Measure" (1976): the number of independent paths through a function is one
    more than the number of its decisions.
"""

from __future__ import annotations

import ast
import time
import warnings
from pathlib import Path
from typing import NamedTuple

__all__ = ["FileReport", "FunctionReport", "analyse_source", "quiet", "source_files", "timed_analysis"]

# Folders that hold no library code: what others installed, tests of broken syntax, and generated trees.
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "lib2to3", "__pycache__"})

# Each adds one path. `and`/`or`, match cases and comprehension conditions are counted apart.
_DECISIONS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class FunctionReport(NamedTuple):
    """One function: its dotted name in the file, first line, length in lines, cyclomatic complexity."""

    name: str
    line: int
    lines: int
    complexity: int


class FileReport(NamedTuple):
    """One source file, measured.

    Attributes:
        path: The file, as it was given.
        lines: Its length in lines.
        functions: How many functions and methods it defines.
        complexity: The sum of their cyclomatic complexities.
        bytecode_bytes: The size of the bytecode that it compiles to.
        longest: Its longest function, or None where it has none.
        most_complex: Its most complex functions, at most ten, the worst first.
        error: Why it could not be measured; empty where it was.
    """

    path: str
    lines: int = 0
    functions: int = 0
    complexity: int = 0
    bytecode_bytes: int = 0
    longest: FunctionReport | None = None
    most_complex: tuple[FunctionReport, ...] = ()
    error: str = ""


def source_files(root: Path) -> list[tuple[str, int]]:
    """List the Python source files below a folder, with their sizes in bytes, the largest first.

    The largest first keeps all workers busy to the end: the last files to be handed out are the small ones. Tests,
    and what is installed beside the standard library, are left out.
    """
    files = [
        (str(path), path.stat().st_size)
        for path in root.rglob("*.py")
        if _SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts) and path.is_file()
    ]
    return sorted(files, key=lambda entry: (-entry[1], entry[0]))


def quiet() -> None:
    """Silence what the compiler warns of in other people's source, in this process."""
    warnings.simplefilter("ignore")


def timed_analysis(path: str) -> tuple[FileReport, float]:
    """Parse, compile and measure one source file; also give the processor seconds that it took this thread.

    A file that cannot be read or parsed says so in `error`.
    """
    before = time.thread_time()
    try:
        report = analyse_source(Path(path).read_bytes(), path)
    except (OSError, SyntaxError, ValueError) as error:
        report = FileReport(path, error=f"{type(error).__name__}: {error}")
    return report, time.thread_time() - before


def analyse_source(source: bytes, path: str = "<source>") -> FileReport:
    """Measure the text of a source file.

    Args:
        source: The file's bytes; its encoding is the one that it declares.
        path: The name to report.

    Raises:
        SyntaxError: The text is not Python of the running version.
    """
    tree = ast.parse(source, path)
    functions: list[FunctionReport] = []
    _measure(tree, "", functions)
    return FileReport(
        path,
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        functions=len(functions),
        complexity=sum(function.complexity for function in functions),
        bytecode_bytes=_bytecode_bytes(compile(source, path, "exec", dont_inherit=True)),
        longest=max(functions, key=lambda function: function.lines, default=None),
        most_complex=tuple(sorted(functions, key=lambda function: -function.complexity)[:10]),
    )


def _measure(node: ast.AST, prefix: str, functions: list[FunctionReport]) -> int:
    """Add the functions below `node` to `functions`; return the decisions that belong to `node` itself."""
    decisions = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            name = f"{prefix}{child.name}"
            inner = _measure(child, f"{name}.", functions)
            if isinstance(child, ast.ClassDef):
                decisions += inner
            else:
                end = child.end_lineno or child.lineno
                functions.append(FunctionReport(name, child.lineno, end - child.lineno + 1, inner + 1))
            continue
        if isinstance(child, _DECISIONS):
            decisions += 1
        elif isinstance(child, ast.BoolOp):
            decisions += len(child.values) - 1
        elif isinstance(child, ast.comprehension):
            decisions += 1 + len(child.ifs)
        elif isinstance(child, ast.match_case):
            decisions += not (isinstance(child.pattern, ast.MatchAs) and child.pattern.pattern is None)
        decisions += _measure(child, prefix, functions)
    return decisions


def _bytecode_bytes(code: object) -> int:
    """Add up the bytecode of a code object and of those within it."""
    total = 0
    pending = [code]
    while pending:
        current = pending.pop()
        total += len(current.co_code)  # type: ignore[attr-defined]
        pending.extend(const for const in current.co_consts if hasattr(const, "co_code"))  # type: ignore[attr-defined]
    return total
