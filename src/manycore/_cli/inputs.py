"""What the items of `manycore map` are: files, lines, JSON lines or CSV records; read as they are needed.

    INPUT    a file, a folder (its files, at any depth, in order of their names; hidden ones are left out),
             a glob where no such file is, or '-' for standard input
    files    an item is a path            lines    an item is a line without its end
    jsonl    a line is one JSON value     csv      an item is a record, by the names in the first line

Invariants:
    No more than a few lines or one record are held at a time, and never a list of all items; of paths, at most
    `_LISTED_AHEAD`, so that the number of files is known where they are not very many.
    What cannot be read becomes a `BadItem` in its place: it fails there, and the items after it go on.
"""

from __future__ import annotations

import csv
import glob
import itertools
import os
import stat
import sys
from array import array
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, Literal

from manycore._cli.exits import CommandError
from manycore._cli.lines import Lines
from manycore._cli.task import BadItem
from manycore._engine.mapping import NOTHING_YET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from manycore._cli.ending import Ending

__all__ = ["STANDARD_INPUT", "Inputs", "Kind"]

Kind = Literal["files", "lines", "jsonl", "csv"]

STANDARD_INPUT = "-"
_LISTED_AHEAD = 100_000  # paths; about 15 MB
_LONGEST_FIELD_BYTES = 16 << 20  # of CSV: an unclosed quote shall not swallow a whole file
_WHOLE_FILE = 0  # stands for a line where a file could not be read at all


class Inputs:
    """The items that INPUTs name, one pass over them.

    Args:
        names: The INPUTs as given; empty for standard input.
        kind: What an item is; None for files where INPUTs name several or a folder, else lines.
        ending: Lets a signal end the wait for an input that never comes.
        exclude: Paths that are never items: the output.

    Raises:
        CommandError: An INPUT does not exist, cannot be read, or is a glob that matches nothing.
    """

    def __init__(self, names: Iterable[str], kind: Kind | None, ending: Ending, exclude: Iterable[str] = ()) -> None:
        self._ending = ending
        self._roots = [root for name in names or [STANDARD_INPUT] for root in _expand(name)]
        several = len(self._roots) > 1 or any(os.path.isdir(root) for root in self._roots)
        self.kind: Kind = kind or ("files" if several else "lines")
        self._excluded = {os.path.realpath(path) for path in exclude}
        self._given = 0  # items that were handed out
        self._exhausted = False
        # Where items come from: runs of items on consecutive lines of one file.
        self._sources: list[str] = []
        self._run_start = array("q")  # the index of the run's first item
        self._run_line = array("q")  # the line that it is on
        self._run_source = array("q")  # the file, as a position in _sources
        self._bytes_read = 0
        self._lines_read = 0
        self._bytes_expected: int | None = None
        self._bytes_before = 0  # of the files before the one that is being read
        self._ahead: list[object] = []
        self._all_listed = False
        self._rest: Iterator[object] = iter(())
        self._reading: Lines | None = None
        if self.kind == "files":
            self._rest = self._paths()
            if STANDARD_INPUT not in self._roots:
                self._ahead = list(itertools.islice(self._rest, _LISTED_AHEAD))
                self._all_listed = len(self._ahead) < _LISTED_AHEAD
        else:
            self._bytes_expected = _bytes_of(self._roots)

    def __iter__(self) -> Iterator[object]:
        """The items; where a pipe has nothing at the moment, `NOTHING_YET`, which is no item."""
        items = {"files": self._files, "lines": self._lines, "jsonl": self._json_lines, "csv": self._records}
        try:
            for item in items[self.kind]():
                if item is not NOTHING_YET:
                    self._given += 1
                yield item
        except OSError as error:  # of a file that was opened and cannot be read on
            self._given += 1
            yield BadItem("", f"cannot read on, what follows is missing: {error.strerror}")
        self._exhausted = True

    def total(self) -> int | None:
        """How many items there are; an estimate while a file is being read, None where nobody can know."""
        if self._exhausted:
            return self._given
        if self.kind == "files":
            return len(self._ahead) if self._all_listed else None
        if self._bytes_expected is None or not self._bytes_read:
            return None
        return max(self._given, round(self._lines_read * self._bytes_expected / self._bytes_read))

    @property
    def awaited(self) -> int | None:
        """The descriptor of the pipe for whose next line the items wait; None where they wait for none."""
        return None if self._reading is None else self._reading.awaited

    def where(self, index: int) -> str:
        """Say where the item of this index stands: `data.jsonl line 8`; empty where the item is a path."""
        run = bisect_right(self._run_start, index) - 1
        if run < 0:
            return ""
        if self._run_line[run] == _WHOLE_FILE:
            return self._sources[self._run_source[run]]
        line = self._run_line[run] + index - self._run_start[run]
        return f"{self._sources[self._run_source[run]]} line {line}"

    def _paths(self) -> Iterator[object]:
        for root in self._roots:
            if root == STANDARD_INPUT:
                with _open(root) as file:
                    self._reading = Lines(file, self._ending)
                    for number, raw in self._numbered(self._reading):
                        if raw.strip():
                            yield _text(raw)
                        elif not number:
                            yield NOTHING_YET
            elif os.path.isdir(root):
                yield from _walk(root, self._excluded)
            else:
                yield root

    def _files(self) -> Iterator[object]:
        yield from self._ahead
        yield from self._rest

    def _documents(self) -> Iterator[Lines | BadItem]:
        """The files to read lines from, open."""
        for root in self._roots:
            for path in _walk(root, self._excluded) if os.path.isdir(root) else (root,):
                reason = path.reason if isinstance(path, BadItem) else ""
                name = path.text if isinstance(path, BadItem) else path
                if not reason:
                    try:
                        file = _open(name)
                    except OSError as error:
                        reason = f"cannot read it: {error.strerror}"
                self._sources.append("standard input" if name == STANDARD_INPUT else name)
                if reason:
                    self._stands_at(_WHOLE_FILE)
                    yield BadItem(name, reason)
                    continue
                with file:
                    self._reading = Lines(file, self._ending)
                    yield self._reading

    def _numbered(self, lines: Lines) -> Iterator[tuple[int, bytes]]:
        """Each line with its number; (0, b"") where none has come yet."""
        number = 0
        while (batch := lines.batch()) is not None:
            self._bytes_read = self._bytes_before + lines.bytes_read
            self._lines_read += len(batch)
            if not batch:
                yield 0, b""
            yield from enumerate(batch, number + 1)
            number += len(batch)
        self._bytes_before = self._bytes_read

    def _stands_at(self, line: int) -> None:
        """Note that the item which comes next is on `line` of the newest source."""
        source = len(self._sources) - 1
        if self._run_start:
            expected = self._run_line[-1] + self._given - self._run_start[-1]
            if self._run_source[-1] == source and expected == line:
                return
        self._run_start.append(self._given)
        self._run_line.append(line)
        self._run_source.append(source)

    def _lines(self) -> Iterator[object]:
        for document in self._documents():
            if isinstance(document, BadItem):
                yield document
                continue
            self._stands_at(1)
            for number, raw in self._numbered(document):
                yield _text(raw) if number else NOTHING_YET

    def _json_lines(self) -> Iterator[object]:
        for document in self._documents():
            if isinstance(document, BadItem):
                yield document
                continue
            for number, raw in self._numbered(document):
                text = raw.strip()
                if not text:
                    if not number:
                        yield NOTHING_YET
                    continue
                self._stands_at(number)
                try:
                    yield text.decode()
                except UnicodeDecodeError as error:
                    yield BadItem(_text(text), f"not JSON: byte {error.start + 1} of the line is not UTF-8")

    def _records(self) -> Iterator[object]:
        csv.field_size_limit(_LONGEST_FIELD_BYTES)
        for document in self._documents():
            if isinstance(document, BadItem):
                yield document
                continue
            pending: deque[bytes] = deque()
            reader = csv.reader(self._csv_text(document, pending))
            header: list[str] | None = None
            while True:
                if not pending and (batch := document.batch()) is not None:
                    self._bytes_read = self._bytes_before + document.bytes_read
                    self._lines_read += len(batch)
                    pending += batch
                    if not batch:
                        yield NOTHING_YET
                        continue
                first_line = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    self._stands_at(first_line)
                    yield BadItem("", f"not CSV: {error}")
                    continue
                if not row:
                    continue
                if header is None:
                    header = row
                    continue
                self._stands_at(first_line)
                if len(row) == len(header):
                    yield dict(zip(header, row, strict=True))
                else:
                    yield BadItem(",".join(row), f"{len(row)} fields where the first line names {len(header)}")
            self._bytes_before = self._bytes_read

    @staticmethod
    def _csv_text(lines: Lines, pending: deque[bytes]) -> Iterator[str]:
        """The text of lines for a CSV reader; in the middle of a record it waits for the next."""
        while True:
            while pending:
                yield pending.popleft().decode("utf-8", "surrogateescape")
            batch = lines.wait()
            if batch is None:
                return
            pending += batch


def _expand(name: str) -> list[str]:
    """The files and folders that one INPUT means."""
    if name == STANDARD_INPUT:
        return [name]
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:
        if not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise CommandError(f"nothing matches {name!r}") from None
            return matches
        raise CommandError(f"there is no file or folder {name!r}") from None
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {name!r}: {getattr(error, 'strerror', None) or error}") from None
    wanted = os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK
    if not os.access(name, wanted):
        raise CommandError(f"cannot read {name!r}: Permission denied")
    return [name]


def _walk(folder: str, excluded: set[str]) -> Iterator[str | BadItem]:
    """The files below a folder, in order of their names; hidden ones, and folders behind links, are left out."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        yield BadItem(folder, f"cannot list it: {error.strerror}")
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, excluded)
        elif entry.is_file() and os.path.realpath(entry.path) not in excluded:
            yield entry.path


def _bytes_of(roots: list[str]) -> int | None:
    """How many bytes the files have; None where one is a pipe, or a folder that is yet to be walked."""
    total = 0
    for root in roots:
        try:
            status = os.fstat(0) if root == STANDARD_INPUT else os.stat(root)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        total += status.st_size
    return total


def _open(path: str) -> BinaryIO:
    # Not sys.stdin: a thread that still reads from it would make the interpreter abort at exit.
    return open(0, "rb", closefd=False) if path == STANDARD_INPUT else open(path, "rb")


def _text(raw: bytes) -> str:
    """A line without its end; bytes that are not UTF-8 become what Python makes of such file names."""
    return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def standard_input_is_terminal() -> bool:
    """Whether reading standard input would wait for a person who was not told so."""
    return sys.stdin is not None and sys.stdin.isatty()
