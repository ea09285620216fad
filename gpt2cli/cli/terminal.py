"""What the commands share about terminals: text out, text in, notices and progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from gpt2cli.errors import GPT2CLIError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from gpt2cli.download import Progress

# Escape sequences could rewrite the screen, direction overrides could disguise text; a
# model may produce both. C0 controls have pictures at U+2400; the others show their number.
_VISIBLE = {c: chr(0x2400 + c) for c in range(0x20) if chr(c) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421"}
_VISIBLE |= {c: f"\\x{c:02x}" for c in range(0x80, 0xA0)}
_VISIBLE |= {c: f"\\u{c:04x}" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}

PIECE = 1 << 20  # bytes of a text that is not read at once


def visible(text: str) -> str:
    """`text` with control characters other than newline and tab made visible."""
    return text.translate(_VISIBLE)


def visible_token(data: bytes) -> str:
    """One token as a piece of a line: · is a space, ↵ a newline, ⇥ a tab.

    Bytes that are no character become \\xhh, and characters that cannot be seen \\uhhhh.
    """
    text = visible(data.decode("utf-8", errors="backslashreplace"))
    return "".join(_MARKS.get(c) or (c if c.isprintable() else _escape(c)) for c in text)


_MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person looks at this stream."""
    return stream is not None and stream.isatty()


class Output:
    """stdout for generated text: UTF-8 whatever the locale, untouched unless on a terminal."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise GPT2CLIError("stdout is closed; there is nowhere to write")
        self.terminal = is_terminal(sys.stdout)
        self._at_line_start = True
        sys.stdout.flush()
        self._buffer: BinaryIO = sys.stdout.buffer

    def write(self, text: str) -> None:
        """Write and flush, so that a stream is seen as it comes."""
        if not text:
            return
        self.write_as_is(visible(text) if self.terminal else text)
        self._at_line_start = text.endswith("\n")

    def write_bytes(self, data: bytes) -> None:
        """Write text that may not be UTF-8: a pipe gets its very bytes."""
        if self.terminal:
            self.write(data.decode("utf-8", errors="replace"))
        else:
            self._buffer.write(data)
            self._buffer.flush()

    def write_as_is(self, text: str) -> None:
        """Write text that may hold escape sequences of our own."""
        self._buffer.write(text.encode("utf-8"))
        self._buffer.flush()

    def end_line(self) -> None:
        """Begin a new line, unless at the start of one."""
        if not self._at_line_start:
            self.write("\n")


def print_rich(*parts: Any, wrap: bool = True, colour: bool = False) -> None:
    """Tables and lines of Rich to stdout; nothing in them is taken for markup.

    Without `wrap` lines keep their length; with `colour` a pipe gets colours too.
    """
    from rich.console import Console

    forced = True if colour else None
    console = Console(highlight=False, markup=False, emoji=False, force_terminal=forced)
    if not is_terminal(sys.stdout) and (colour or not console.is_terminal):
        console.width = 120
    # Rich would make a closed pipe its own affair, and exit with 1.
    with console.capture() as text:
        for part in parts:
            console.print(part, soft_wrap=not wrap)
    Output().write_as_is(text.get())


def complain(message: str) -> None:
    """One line on stderr: what went wrong, or what was lost."""
    if sys.stderr is not None:
        # Names and prompts within the message are as untrusted as a model's text.
        line = " ".join(visible(message).split())
        sys.stderr.write(f"gpt2: {line}\n".encode("utf-8", "replace").decode("utf-8"))
        sys.stderr.flush()


def complain_of_dropped(count: int) -> None:
    """Say that a prompt has lost so many tokens, if it has."""
    if count:
        complain(f"the prompt is too long: its first {count} tokens are dropped")


def notice(message: str, *, asked: bool = False) -> None:
    """One line on stderr for people: shown on a terminal, or when asked for (`-v`)."""
    if asked or is_terminal(sys.stderr):
        complain(message)


def decode_utf8(data: bytes, origin: str, offset: int = 0) -> str:
    """Text from bytes, `offset` bytes into their origin.

    Raises `UsageError` that tells where the first wrong byte is.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{origin} is not valid UTF-8 text (at byte {offset + error.start})"
        ) from None


def read_argument(argument: str) -> str:
    """A command-line argument as UTF-8, even if the locale read it as something else."""
    return decode_utf8(os.fsencode(argument), "the prompt")


def stdin_is_piped() -> bool:
    """Whether stdin is there and nobody types into it."""
    return sys.stdin is not None and not sys.stdin.isatty()


def read_stdin() -> str:
    """All of stdin. Raises `UsageError` if it is closed or not UTF-8."""
    if sys.stdin is None:
        raise UsageError("stdin is closed; there is nothing to read")
    return decode_utf8(sys.stdin.buffer.read(), "stdin")


def read_file(path: Path) -> str:
    """All of a text file. Raises `UsageError` if it cannot be read."""
    try:
        return decode_utf8(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def check_readable(file: str) -> None:
    """Refuse what could not be read later on; "-" is stdin. Raises `UsageError`."""
    if file == "-" and sys.stdin is None:
        raise UsageError("stdin is closed; there is nothing to read")
    if file != "-" and not Path(file).is_fifo():  # who writes into one would notice
        with open_bytes(file):
            pass


@contextmanager
def open_bytes(file: str) -> Iterator[BinaryIO]:
    """A file, or stdin for "-". Raises `UsageError` if it cannot be read."""
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from None


def read_pieces(file: str, origin: str, keep_newline: bool) -> Iterator[str]:
    """A text of any length in pieces of some lines. Raises `UsageError` if it is not UTF-8."""
    offset, last = 0, ""
    with open_bytes(file) as stream:
        while lines := stream.readlines(PIECE):
            yield last
            data = b"".join(lines)
            last = decode_utf8(data, origin, offset)
            offset += len(data)
    yield last if keep_newline else without_newline(last)


def without_newline(text: str) -> str:
    """`text` less one newline at its end, which programs add and nobody means."""
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")


def read_text(argument: str | None, file: Path | None, keep_newline: bool) -> str | None:
    """The piped or filed text, a newline and the argument: whatever there is of them.

    None when there is nothing, for a person at a terminal gave no argument. Raises
    `UsageError` when what was to be read is empty.
    """
    piped, origin = None, ""
    if file is not None:
        piped, origin = read_file(file), str(file)
    elif argument == "-" or stdin_is_piped():
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


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later on. Raises `UsageError`."""
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a directory")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: {path.parent} is no directory")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied")


def write_file(path: Path, data: bytes) -> None:
    """All of a file or nothing; into a pipe or a device as it comes."""
    from gpt2cli.checkpoint import atomic

    target = path.resolve()
    try:
        if path.exists() and not target.is_file():  # what /dev/stdout leads to may have no name
            path.write_bytes(data)
            return
        with atomic(target) as temporary:
            temporary.write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise GPT2CLIError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def token_progress(total: int, *, written: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that advances by tokens, if a person looks on; then it goes.

    Without a bar where stdout is `written` to meanwhile, and is that terminal.
    """
    if not is_terminal(sys.stderr) or (written and is_terminal(sys.stdout)):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("tokens", total=total)
        yield lambda tokens: bars.advance(task, tokens)


@contextmanager
def line_progress() -> Iterator[Callable[[int], None]]:
    """A count of lines on stderr, if a person looks on and no lines appear there; then it goes."""
    if not is_terminal(sys.stderr) or is_terminal(sys.stdout):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} lines"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("lines", total=None)
        yield lambda lines: bars.advance(task, lines)


@contextmanager
def download_progress() -> Iterator[Progress | None]:
    """A progress bar a file on stderr while something is fetched, if a person looks on.

    Most runs fetch nothing, and then nothing is imported or drawn.
    """
    if not is_terminal(sys.stderr):
        yield None
        return
    bars: RichProgress | None = None
    tasks: dict[str, TaskID] = {}

    def update(name: str, done: int, total: int) -> None:
        nonlocal bars
        if bars is None:
            bars = _transfer_bars()
            bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(visible(name), total=total)
        bars.update(tasks[name], completed=done, total=total)

    try:
        yield update
    finally:
        if bars is not None:
            bars.stop()


def _transfer_bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
