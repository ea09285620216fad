"""Output of the commands: text on stdout, notices on stderr, control characters made visible."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Literal, TextIO

from gpt2cli.errors import GPT2CLIError, UsageError

if TYPE_CHECKING:
    pass


# Escape sequences could rewrite the screen, direction overrides could disguise text; a
# model may produce both. C0 controls have pictures at U+2400; the others show their number.
_VISIBLE = {c: chr(0x2400 + c) for c in range(0x20) if chr(c) not in "\n\t"}
_VISIBLE |= {0x7F: "\u2421"}
_VISIBLE |= {c: f"\\x{c:02x}" for c in range(0x80, 0xA0)}
_VISIBLE |= {c: f"\\u{c:04x}" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """`text` with control characters other than newline and tab made visible."""
    return text.translate(_VISIBLE)


def visible_token(data: bytes) -> str:
    """One token as a piece of a line: · is a space, ↵ a newline, ⇥ a tab.

    Bytes that are no character become \\xhh, and characters that cannot be seen \\uhhhh.
    """
    text = visible(data.decode("utf-8", errors="backslashreplace"))
    return "".join(_MARKS.get(c) or (c if c.isprintable() else escape(c)) for c in text)


_MARKS = {" ": "·", "\n": "↵", "\t": "⇥"}


def escape(character: str) -> str:
    """A character by its number: \\uhhhh."""
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def is_terminal(stream: TextIO | None) -> bool:
    """Whether this stream is a terminal."""
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
        """Write and flush, so that a stream is shown at once."""
        if not text:
            return
        self.write_as_is(visible(text) if self.terminal else text)
        self._at_line_start = text.endswith("\n")

    def write_bytes(self, data: bytes) -> None:
        """Write text that may not be UTF-8: a pipe gets the bytes unchanged."""
        if self.terminal:
            self.write(data.decode("utf-8", errors="replace"))
        else:
            self._buffer.write(data)
            self._buffer.flush()

    def write_given(self, text: str) -> None:
        """Write what a person typed, in its own colour if there are colours."""
        if text and self.terminal and palette():
            self.write_as_is(f"\x1b[36m{visible(text)}\x1b[0m")
            self._at_line_start = text.endswith("\n")
        else:
            self.write(text)

    def write_as_is(self, text: str) -> None:
        """Write text that may hold escape sequences of our own."""
        self._buffer.write(text.encode("utf-8"))
        self._buffer.flush()

    def end_line(self) -> None:
        """Begin a new line, unless at the start of one."""
        if not self._at_line_start:
            self.write("\n")


COLOUR = ("auto", "always", "never")
Palette = Literal["standard", "256", "truecolor"]
_colour = "auto"


def use_colour(when: str) -> None:
    """Whether to write colours: `auto` is on terminals that have some, unless NO_COLOR is set.

    Raises `UsageError` for a value not in `COLOUR`.
    """
    if when not in COLOUR:
        raise UsageError(f"color must be auto, always or never, not {when!r}", "color")
    global _colour
    _colour = when


def palette() -> Palette | None:
    """The colours that stdout gets, if any, in Rich's words: `standard` are the 16 of old ones.

    Decided here and not by Rich, whose import would delay the first token.
    """
    if _colour == "never" or (_colour == "auto" and os.environ.get("NO_COLOR")):
        return None
    forced = _colour == "always" or any(os.environ.get(n, "0") not in ("", "0") for n in _SWITCHES)
    term = os.environ.get("TERM", "windows" if "WT_SESSION" in os.environ else "")
    bare = term in ("", "dumb", "unknown")
    if not forced and (bare or not is_terminal(sys.stdout)):
        return None
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return "truecolor"
    return "256" if bare or term.endswith(("256color", "kitty", "direct")) else "standard"


_SWITCHES = ("FORCE_COLOR", "CLICOLOR_FORCE")


def complain(message: str) -> None:
    """Write one line to stderr: an error or a notice."""
    if sys.stderr is not None:
        # Names and prompts within the message are as untrusted as a model's text.
        line = " ".join(visible(message).split())
        sys.stderr.write(f"gpt2: {line}\n".encode("utf-8", "replace").decode("utf-8"))
        sys.stderr.flush()


def log(line: str) -> None:
    """Write a line of a log to stderr; where it cannot be written, nothing else suffers."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{visible(line)}\n".encode("utf-8", "replace").decode("utf-8"))
            sys.stderr.flush()


def complain_of_dropped(count: int) -> None:
    """Say how many tokens a prompt has lost, if any."""
    if count:
        notice(f"the prompt is too long: its first {count} tokens are dropped", asked=True)


_quiet = False


def be_quiet(wanted: bool = True) -> None:
    """Write only errors to stderr (`-q`): no notices and no bars."""
    global _quiet
    _quiet = wanted


def is_watched() -> bool:
    """Whether stderr is a terminal, without `-q`."""
    return not _quiet and is_terminal(sys.stderr)


def notice(message: str, *, asked: bool = False) -> None:
    """Write one line to stderr, if it is a terminal or when asked for (`-v`)."""
    if is_watched() or (asked and not _quiet):
        complain(message)
