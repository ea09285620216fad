"""Files of text, which is UTF-8, and of JSON; files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2cli.errors import GPT2CLIError, UsageError

LEFTOVER_SECONDS = 24 * 3600


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


def load_json(text: str, *, whole: bool = False) -> Any:
    """A value of JSON as the standard has it. Raises `ValueError`, also for NaN and infinities.

    With `whole` a number without a fraction is an int however it is written, as in JSON schemas.
    """
    number = _whole if whole else _finite
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=number)
    except RecursionError as error:
        raise ValueError(str(error)) from None


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
