"""Text from files, stdin and arguments, and files written whole."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from gpt2cli.errors import UsageError
from gpt2cli.files import decode_utf8, read_file, text_pieces

ARRIVED = 1 << 18  # bytes at most, of lines read as they arrive


def read_argument(argument: str) -> str:
    """A command-line argument as UTF-8, even if the locale read it as something else."""
    return decode_utf8(os.fsencode(argument), "an argument")


def stdin_is_piped() -> bool:
    """Whether stdin is open and not a terminal."""
    return sys.stdin is not None and not sys.stdin.isatty()


def stdin_is_spare() -> bool:
    """Whether stdin can be read in addition to an argument: not if a shell loop reads it.

    `while read -r line; do gpt2 … "$line"; done < file` passes on the file, whose position
    is no longer its beginning. For a pipe this cannot be detected.
    """
    if not stdin_is_piped():
        return False
    try:
        descriptor = sys.stdin.fileno()
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return not (is_file and os.lseek(descriptor, 0, os.SEEK_CUR))
    except (OSError, ValueError):  # no descriptor, or none with a position
        return True


def read_stdin() -> str:
    """All of stdin. Raises `UsageError` if it is closed or not UTF-8."""
    if sys.stdin is None:
        raise UsageError("stdin is closed; there is nothing to read")
    try:
        return decode_utf8(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise UsageError(f"cannot read stdin: {error.strerror}") from None


def check_readable(file: str) -> None:
    """Raise `UsageError` if a file cannot be read; "-" is stdin."""
    if file == "-" and sys.stdin is None:
        raise UsageError("stdin is closed; there is nothing to read")
    if file != "-" and not Path(file).is_fifo():  # opening it would block or be seen by its writer
        with open_bytes(file):
            pass


@contextmanager
def open_bytes(file: str) -> Iterator[io.BufferedReader]:
    """A file, or stdin for "-". Raises `UsageError` if it cannot be read."""
    try:
        if file == "-":
            yield cast(io.BufferedReader, sys.stdin.buffer)
            return
        with open(file, "rb") as stream:
            yield stream
    except FileNotFoundError:
        raise UsageError(f"there is no file {file!r}; --text takes a text itself") from None
    except OSError as error:
        name = "stdin" if file == "-" else file
        raise UsageError(f"cannot read {name}: {error.strerror}") from None


def read_lines(file: str) -> Iterator[list[bytes]]:
    """The lines of a file or of stdin, as many at a time as have arrived."""
    held: list[bytes] = []  # of a line whose end has not come yet
    with open_bytes(file) as stream:
        while data := stream.read1(ARRIVED):
            whole, newline, rest = data.rpartition(b"\n")
            if newline:
                yield io.BytesIO(b"".join((*held, whole, newline))).readlines()
                held = []
            held.append(rest)
    if last := b"".join(held):
        yield [last]


def read_pieces(file: str, origin: str, keep_newline: bool) -> Iterator[str]:
    """A text of any length in pieces of some lines. Raises `UsageError` if it is not UTF-8."""
    last = ""
    with open_bytes(file) as stream:
        for piece in text_pieces(stream, origin):
            yield last
            last = piece
    yield last if keep_newline else without_newline(last)


def without_newline(text: str) -> str:
    """Strip one trailing newline."""
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def read_text(argument: str | None, file: Path | None, keep_newline: bool) -> str | None:
    """The text of the file or stdin and the argument, joined by a newline; either may be absent.

    None if both are absent: at a terminal, without an argument. Raises `UsageError` if the
    file or stdin is empty.
    """
    piped, origin = None, ""
    if file is not None:
        piped, origin = read_file(file), str(file)
    elif argument == "-" or (stdin_is_piped() if argument is None else stdin_is_spare()):
        piped, origin = read_stdin(), "stdin"
    own = None if argument in (None, "-") else read_argument(argument or "")
    if piped is None:
        return own
    if not keep_newline:
        piped = without_newline(piped)
    if own is None and not piped:
        raise UsageError(f"{origin} is empty; give a text there or as an argument")
    if own is None:
        return piped
    return f"{piped}\n{own}" if piped else own


NamedText = tuple[str, Iterable[str]]
"""The name of a text, and the text in pieces."""


def input_names(files: Sequence[str], text: str | None) -> list[str]:
    """The files to read; "-", which is stdin, if there are none and no text.

    Raises `UsageError` for what cannot be read.
    """
    names = files or (["-"] if text is None and stdin_is_piped() else [])
    for name in names:
        check_readable(name)
    return list(names)


def named_texts(files: Sequence[str], text: str | None, keep_newline: bool) -> list[NamedText]:
    """The texts of some files, then `text`."""
    texts: list[NamedText] = []
    for file in files:
        name = "stdin" if file == "-" else os.fsencode(file).decode("utf-8", "replace")
        texts.append((name, read_pieces(file, name, keep_newline)))
    if text is not None:
        texts.append(("text", [read_argument(text)]))
    return texts


def is_text(argument: str) -> bool:
    """Whether an argument that may be a file's name is a text: no such file, nor like a name."""
    if argument == "-" or os.path.lexists(argument):
        return False
    return not re.fullmatch(r"\S*[\\/]\S*|.*\.\w{1,8}", argument)
