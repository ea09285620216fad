"""Files of text, which is UTF-8, and of JSON; files written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gpt2cli.errors import GPT2CLIError, UsageError, shown

LEFTOVER_SECONDS = 24 * 3600
PIECE = 1 << 20  # bytes of a text read at once
_SAMPLED, _PAGE = 16, 4096  # pages of a file, and their bytes


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that replaces it only if the block succeeds."""
    discard_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory next to `path` that becomes it only if the block succeeds.

    Raises `UsageError` if something is there already and may not be overwritten, or nothing can
    be written.
    """
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} exists; write to another directory")
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if os.path.lexists(path):
            old = temporary.with_suffix(".old.tmp")
            os.rename(path, old)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_leftovers(directory: Path, name: str | None = None) -> int:
    """Delete temporary files that killed processes left behind, of one file or all of them.

    Those of other machines, or whose process id is in use again, are deleted after a day.
    Returns the bytes freed.
    """
    pattern = ".+" if name is None else re.escape(name)
    temporary = re.compile(rf"\.{pattern}\.(?:.*\.)?\d+\.tmp")
    ours = re.compile(rf"\.{re.escape(platform.node())}\.(\d+)\.tmp$")
    freed = 0
    for path in directory.glob(".*.tmp"):
        if not temporary.fullmatch(path.name):
            continue
        try:
            stat, own = path.lstat(), ours.search(path.name)
            is_old = stat.st_mtime < time.time() - LEFTOVER_SECONDS
            if is_old or (own and not _is_running(int(own[1]))):
                path.unlink()
                freed += stat.st_size
        except OSError:  # another process was faster
            continue
    return freed


def fingerprint(paths: Iterable[Path]) -> str:
    """A hash that tells large files from others: of size, time and some pages of each."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            for i in range(_SAMPLED):
                file.seek(i * max(0, stat.st_size - _PAGE) // (_SAMPLED - 1))
                digest.update(file.read(_PAGE))
    return digest.hexdigest()


def _is_running(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


def decode_utf8(data: bytes, origin: str, offset: int = 0) -> str:
    """Text from bytes that begin at byte `offset` of their origin.

    Raises `UsageError`, with the position of the first invalid byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{origin} is not valid UTF-8 text (at byte {offset + error.start})"
        ) from None


def text_pieces(stream: BinaryIO, origin: str) -> Iterator[str]:
    """A text of any length in pieces of some lines. Raises `UsageError` if it is not UTF-8."""
    offset = 0
    while lines := stream.readlines(PIECE):
        data = b"".join(lines)
        yield decode_utf8(data, origin, offset)
        offset += len(data)


def load_json(text: str, *, whole: bool = False) -> Any:
    """A value of JSON as the standard has it. Raises `ValueError`, also for NaN and infinities.

    With `whole` a number without a fraction is an int however it is written, as in JSON schemas.
    """
    number = _whole if whole else _finite
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=number)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def read_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises `UsageError` for anything else."""
    try:
        found = load_json(text)
    except ValueError as error:
        # The position in the line; that there is only one line needs no words.
        reason = re.sub(r"line 1 (column \d+) \(char \d+\)", r"\1", str(error))
        raise UsageError(f"it is not JSON: {reason}") from None
    if not isinstance(found, dict):
        raise UsageError(f"it is no JSON object, but {shown(found)}")
    return found


def to_json(value: Any) -> bytes:
    """A value as JSON in UTF-8, without spaces; what is no Unicode is escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def json_line(record: Mapping[str, Any]) -> bytes:
    """A line of JSON, in UTF-8; what is no Unicode is escaped."""
    try:
        return (json.dumps(record, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record) + "\n").encode()


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits[:20]} is too large a number")
    return number


def _whole(digits: str) -> float | int:
    number = _finite(digits)
    return int(number) if number.is_integer() else number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_file(path: Path) -> str:
    """All of a text file. Raises `UsageError` if it cannot be read."""
    try:
        return decode_utf8(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def check_writable(path: Path, inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise `UsageError` if a file cannot be written, or is one of those to be read."""
    if "\0" in str(path):
        raise UsageError(f"cannot write {path}: a name cannot hold the character NUL")
    try:
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a directory")
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {path}: {path.parent} is no directory")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"cannot write {path}: permission denied")
        if path.resolve() in (Path(file).resolve() for file in inputs if file is not None):
            raise UsageError(f"cannot write {path}: it is read, too")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    except (ValueError, RuntimeError) as error:  # links in a circle
        raise UsageError(f"cannot write {path}: {error}") from None


def check_space(path: Path, size: int) -> None:
    """Raise `UsageError` if the disk has no room for `size` bytes where `path` is to be."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if size > (free := shutil.disk_usage(folder).free):
        raise UsageError(
            f"{path} takes {size / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB free"
        )


def append_to_file(path: Path, text: str) -> None:
    """Append text to a file and flush it, so that a later failure cannot lose it.

    Raises `GPT2CLIError` where it cannot be written.
    """
    try:
        with open(path, "ab") as stream:
            stream.write(text.encode("utf-8"))
    except OSError as error:
        raise GPT2CLIError(f"cannot write {path}: {error.strerror}") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; to a pipe or a device, write directly."""
    target = path.resolve()
    try:
        if path.exists() and not target.is_file():  # the target of /dev/stdout may have no name
            path.write_bytes(data)
            return
        with atomic(target) as temporary:
            temporary.write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GPT2CLIError(f"cannot write {path}: {error.strerror}") from None
