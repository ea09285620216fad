"""The output of a bulk run as its journal: appended in whole lines, and continued after a stop.

Beside OUTPUT lies OUTPUT.run.json, which says what the run is. A file that nothing can be
appended to, such as Parquet, is made of OUTPUT.part.jsonl at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.files import check_writable, load_json, write_file
from gpt2cli.serving import results

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run writes: OUTPUT and the files beside it."""

    target: Path
    format: str

    @property
    def is_converted(self) -> bool:
        """Whether OUTPUT is made of the lines at the end."""
        return results.is_converted(self.target.name, self.format)

    @property
    def lines(self) -> Path:
        """The journal."""
        return self._beside(".part.jsonl") if self.is_converted else self.target

    @property
    def run_file(self) -> Path:
        """What the run is."""
        return self._beside(".run.json")

    @property
    def retried(self) -> Path:
        """Lines that will replace those of rows that failed."""
        return self._beside(".retry.jsonl")

    def _beside(self, ending: str) -> Path:
        return self.target.with_name(self.target.name + ending)

    @property
    def size(self) -> int:
        """The bytes of OUTPUT."""
        return self.target.stat().st_size if self.target.exists() else 0

    def check(self, source: str) -> None:
        """Raise `UsageError` if nothing can be written here, or it is what is read."""
        for path in (self.target, self.lines, self.run_file, self.retried):
            check_writable(path, [source])
            if path.exists() and not path.is_file():
                raise UsageError(f"cannot write {path}: it is no regular file; use - for stdout")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away; the lock of a killed process is void.

        Raises `GPT2CLIError` while another run is writing here.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.target.with_name(f".{self.target.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise GPT2CLIError(f"another run is writing {self.target}; wait for its end") from None
        except OSError as error:
            raise UsageError(f"cannot write {self.target}: {error.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    def clear(self) -> None:
        """Forget the run and delete its lines; what was made of them stays until it is replaced."""
        for path in (self.run_file, self.retried, self.lines):
            path.unlink(missing_ok=True)

    def read_run(self) -> dict[str, Any] | None:
        """What the run is; None where none began. Raises `GPT2CLIError` for a damaged file."""
        try:
            found = json.loads(self.run_file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise GPT2CLIError(
                f"cannot read {self.run_file} ({error}); begin anew with --overwrite"
            ) from None
        if not isinstance(found, dict) or not {"run", "finished"} <= found.keys():
            raise GPT2CLIError(f"{self.run_file} is damaged; begin anew with --overwrite")
        return found

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Write down what the run is."""
        write_file(self.run_file, (json.dumps(facts, indent=1) + "\n").encode())


@dataclass(slots=True)
class Written:
    """The lines of a journal: how many, how many of rows that failed, and which, a byte per row.

    In order, a row is known by its position in the journal; otherwise by the number in its line.
    """

    count: int = 0
    errors: int = 0
    _states: bytearray = field(default_factory=bytearray)

    def has(self, row: int) -> bool:
        """Whether there is a line of this row."""
        return row < len(self._states) and self._states[row] != 0

    def has_failed(self, row: int) -> bool:
        """Whether its line is an error."""
        return row < len(self._states) and self._states[row] == _FAILED

    def add(self, row: int, failed: bool) -> None:
        """Note a line."""
        self._states.extend(bytes(max(0, row + 1 - len(self._states))))
        self._states[row] = _FAILED if failed else _DONE
        self.count, self.errors = self.count + 1, self.errors + failed


_DONE, _FAILED = 1, 2


def scan(lines: Path, *, ordered: bool) -> Written:
    """What a journal holds."""
    found = Written()
    for position, record in enumerate(records(lines)):
        row = position if ordered else record.get("row")
        if type(row) is not int or row < 0:
            raise _damaged(lines, position + 1)
        found.add(row, results.has_failed(record))
    return found


def records(lines: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal. Raises `GPT2CLIError` for one that no run has written."""
    if not lines.exists():
        return
    with lines.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = load_json(line.decode())
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise _damaged(lines, number)
            yield record


def _damaged(lines: Path, number: int) -> GPT2CLIError:
    return GPT2CLIError(f"{lines} is damaged at line {number}; begin anew with --overwrite")


def has_lines(lines: Path) -> bool:
    """Whether a journal holds a whole line."""
    if not lines.exists():
        return False
    with lines.open("rb") as stream:
        return stream.readline().endswith(b"\n")


class Journal:
    """A file that grows by whole lines, each handed to the system before the next is made.

    What an interruption or a full disk leaves of a line is cut off, now or at the next start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            self._file = os.open(path, flags, 0o666)
        except OSError as error:
            raise GPT2CLIError(f"cannot write {path}: {error.strerror}") from None
        self._end = _end_of_lines(self._file)

    def __enter__(self) -> Journal:
        os.ftruncate(self._file, self._end)
        os.lseek(self._file, self._end, os.SEEK_SET)
        return self

    def write(self, line: bytes) -> None:
        """Append a line. Raises `GPT2CLIError` if it does not fit the disk."""
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            raise GPT2CLIError(f"cannot write {self._path}: {error.strerror}") from None
        self._end += len(line)

    def __exit__(self, *_: object) -> None:
        """Leave whole lines on the disk."""
        try:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)
        finally:
            os.close(self._file)


def _end_of_lines(file: int) -> int:
    """The bytes up to the last newline, looked for from the end."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end:
        begin = max(0, end - _BLOCK)
        os.lseek(file, begin, os.SEEK_SET)
        newline = os.read(file, end - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
