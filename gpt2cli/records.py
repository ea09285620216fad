"""Files of records, one after another: lines, JSONL, CSV and Parquet, also compressed.

A record is a line as bytes, or a row of a table by the names of its columns; a list of cells
where those do not fit the columns. Only as much of the file is in memory as one record takes, or
one row group of Parquet.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from gpt2cli.errors import GPT2CLIError, UsageError

Kind = Literal["jsonl", "lines", "csv", "parquet"]
Record = bytes | Mapping[str, Any] | list[str]
STDIN = "-"
HASHED = 1 << 20  # bytes at the beginning of a file that identify it, with its size
ARRIVED = 1 << 14  # bytes of a compressed file read at once
_BOM = b"\xef\xbb\xbf"
_COMPRESSED = (".gz", ".zst")
_KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Given:
    """Records that the caller has, each by the names of its fields."""

    name: str = "the data"
    kind: Kind = "jsonl"
    columns: list[str] | None = None
    first: Record | None = None
    unit: str = "row"


class Input:
    """A file of records, or stdin for "-"; its name says what it holds.

    Raises `UsageError` if it cannot be read, or a library for it is missing.
    """

    def __init__(self, name: str, *, lines: bool = False) -> None:
        self.name = name
        self.kind: Kind = "lines" if lines else _KINDS.get(suffix(name), "jsonl")
        self._peeked: list[bytes] = []  # of stdin, which cannot be opened twice
        if self.is_stdin and sys.stdin is None:
            raise UsageError("stdin is closed; there is nothing to read")
        if not self.is_stdin:
            check_file(Path(name))
        self.columns = self._columns()

    @property
    def is_stdin(self) -> bool:
        """Whether it can be read only once."""
        return self.name == STDIN

    @property
    def unit(self) -> str:
        """What its records are called."""
        return "row" if self.kind in ("csv", "parquet") else "line"

    def records(self) -> Iterator[tuple[int, Record]]:
        """Each record and its number from 0. Blank lines are counted, but are none in a table.

        Raises `GPT2CLIError` where the file is damaged.
        """
        if self.kind == "parquet":
            yield from enumerate(_parquet_rows(self.name))
            return
        with reading(self.name), self._open() as stream:
            yield from self._table(stream) if self.kind == "csv" else self._lines(stream)

    @cached_property
    def first(self) -> Record | None:
        """The first record, which remains to be read."""
        if not self.is_stdin:
            return next((record for _, record in self.records()), None)
        for line in sys.stdin.buffer:
            self._peeked.append(line)
            if self.kind == "lines" or line.strip():
                return line
        return None

    def identity(self) -> str | None:
        """Size and a hash of the first bytes, which tell files apart; None for stdin."""
        if self.is_stdin:
            return None
        with open(self.name, "rb") as stream:
            digest = hashlib.sha256(stream.read(HASHED)).hexdigest()
        return f"{Path(self.name).stat().st_size} bytes, sha256 {digest[:16]}"

    def _columns(self) -> list[str] | None:
        """The names of a table's columns; None for lines."""
        if self.kind == "parquet":
            return list(_parquet(self.name).schema_arrow.names)
        if self.kind != "csv":
            return None
        try:
            with self._open() as stream:
                names = next(self._cells(stream), [])
        except _damages(OSError) as error:
            raise UsageError(f"cannot read {self.name}: {error}") from None
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"{self.name} has two columns of the name {twice!r}")
        return names

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        if self.is_stdin:
            yield sys.stdin.buffer
            return
        with open(self.name, "rb") as file, decompressed(file, self.name) as stream:
            yield stream

    def _lines(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for number, line in enumerate(chain(self._peeked, stream)):
            whole = line.removeprefix(_BOM) if number == 0 else line
            if self.kind == "lines" or whole.strip():
                yield number, whole

    def _table(self, stream: BinaryIO) -> Iterator[tuple[int, Record]]:
        columns = self.columns or []
        for number, cells in enumerate(islice(self._cells(stream), 1, None)):
            if cells:
                fits = len(cells) == len(columns)
                yield number, dict(zip(columns, cells, strict=True)) if fits else cells

    def _cells(self, stream: BinaryIO) -> Iterator[list[str]]:
        csv.field_size_limit(2**31 - 1)
        # What is not UTF-8 becomes a surrogate, and the row an error; the others are read.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        yield from csv.reader(text, delimiter="\t" if suffix(self.name) == ".tsv" else ",")


def suffix(name: str) -> str:
    """The end of a file's name that says what it holds, whether compressed or not."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raise `GPT2CLIError` where a file that is read turns out to be damaged or unreadable."""
    try:
        yield
    except _damages() as error:
        raise GPT2CLIError(f"{name} is damaged: {error}") from None
    except OSError as error:
        raise GPT2CLIError(f"cannot read {name}: {error.strerror or error}") from None


@contextmanager
def decompressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """A file to be read that is compressed if its name says so."""
    ending = Path(name).suffix
    if ending == ".gz":
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield cast(BinaryIO, stream)
    elif ending == ".zst":
        with _unzstd(file) as stream:
            yield stream
    else:
        yield file


def _unzstd(file: BinaryIO) -> BinaryIO:
    library = zstd()
    if hasattr(library, "ZstdFile"):
        return cast(BinaryIO, library.ZstdFile(file))
    return cast(BinaryIO, io.BufferedReader(_Frames(file, library), HASHED))


class _Frames(io.RawIOBase):
    """The text of zstd frames. The library's own reader takes a file cut off for a whole one."""

    def __init__(self, file: BinaryIO, library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None  # that being read
        self._text = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 at the end. Raises `EOFError` within a frame."""
        data = b"" if self._frame is None else self._frame.unused_data
        while not self._text:
            data = data or self._file.read(ARRIVED)
            if not data and (self._frame is None or self._frame.eof):
                return 0
            if not data:
                raise EOFError("it ends within a frame")
            if self._frame is None or self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            self._text = self._frame.decompress(data)
            data = self._frame.unused_data
        count = min(len(buffer), len(self._text))
        buffer[:count], self._text = self._text[:count], self._text[count:]
        return count


@contextmanager
def compressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """A file to be written that is compressed if its name says so, always to the same bytes."""
    ending = Path(name).suffix
    if ending == ".gz":
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
            yield cast(BinaryIO, stream)
    elif ending == ".zst":
        with zstd().open(file, "wb") as stream:
            yield stream
    else:
        yield file


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is."""
    return Path(name).suffix in _COMPRESSED


def zstd() -> Any:
    """The module for .zst, Python's own from 3.14 on. Raises `UsageError` where it is missing."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    raise UsageError(".zst files need zstandard: pip install 'gpt2cli[bulk]'")


def pyarrow() -> Any:
    """The library for Parquet. Raises `UsageError` where it is missing."""
    try:
        import pyarrow as library
        import pyarrow.parquet
    except ImportError:
        raise UsageError("Parquet files need pyarrow: pip install 'gpt2cli[bulk]'") from None
    return library


def _damages(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What readers raise for a file that is not what its name says, or was cut off; and others."""
    loaded = (sys.modules.get(name) for name in ("compression.zstd", "zstandard"))
    zstd_errors = [module.ZstdError for module in loaded if module is not None]
    return (EOFError, zlib.error, csv.Error, gzip.BadGzipFile, *zstd_errors, *others)


def check_file(path: Path) -> None:
    """Raise `UsageError` if a file cannot be read, or a library for it is missing."""
    try:
        with path.open("rb"):
            pass
        if not path.is_file():
            raise UsageError(f"cannot read {path}: it is no regular file; use - for stdin")
    except FileNotFoundError:
        raise UsageError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise UsageError(f"cannot read {str(path)!r}: {error}") from None
    if path.suffix == ".zst":
        zstd()


def _parquet(name: str) -> Any:
    library = pyarrow()
    try:
        return library.parquet.ParquetFile(name)
    except (library.ArrowException, OSError) as error:
        raise UsageError(f"{name} is no Parquet file: {error}") from None


def _parquet_rows(name: str) -> Iterator[dict[str, Any]]:
    library, file = pyarrow(), _parquet(name)
    with file:
        try:
            for batch in file.iter_batches(batch_size=512):
                yield from batch.to_pylist()
        except (library.ArrowException, OSError) as error:
            raise GPT2CLIError(f"{name} is damaged: {error}") from None
