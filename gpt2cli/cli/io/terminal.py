"""Output of the commands: text on stdout, notices on stderr, control characters made visible."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO

from gpt2cli.errors import GPT2CLIError, UsageError

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Column, Table

LONG = 20  # characters of a heading beyond which it has a line of its own
PIPE_WIDTH = 120  # columns, where there is no terminal
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)

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


def make_console() -> Console:
    """Rich on stdout, without markup, with the colours of `palette`."""
    from rich.console import Console

    colours = palette()
    # Rich assumes 80 columns for a dumb terminal or a pipe.
    width, height = shutil.get_terminal_size((PIPE_WIDTH, 25))
    console = Console(
        color_system=colours,
        force_terminal=colours is not None,
        no_color=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.width, console.height = width, height
    return console


def new_table(*headings: str, text: int = 1) -> Table:
    """A table whose first `text` columns are text and the others numbers.

    Numbers are never broken; where a terminal is too narrow for that `print_rich` shows a
    paragraph per row instead.
    """
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, heading in enumerate(headings):
        made.add_column(
            visible(heading),
            justify="left" if i < text else "right",
            vertical="bottom",
            overflow="fold",
            no_wrap=i >= text,
            max_width=40 if i and not heading else None,  # without a heading it is for bars
        )
    return made


def print_rich(*parts: Any, wrap: bool = True) -> None:
    """Tables and lines of Rich to stdout. Without `wrap` lines keep their length."""
    from rich.table import Table

    console = make_console()
    # Rich would handle a closed pipe itself, and exit with 1.
    with console.capture() as text:
        for part in parts:
            narrow = isinstance(part, Table) and _least_width(part) > console.width
            shown = _paragraphs(part, console.width) if narrow else part
            console.print(shown, soft_wrap=not wrap)
    written = text.get()
    Output().write_as_is(_TRAILING.sub("", written) if wrap else written)


def _least_width(table: Table) -> int:
    """Columns that a table needs so that no number and no word is broken."""

    def width(column: Column) -> int:
        cells = [str(cell) for cell in (column.header, *column.cells) if isinstance(cell, str)]
        parts = (cell.splitlines() if column.no_wrap else cell.split() for cell in cells)
        return max((cell_len(part) for found in parts for part in found), default=0)

    from rich.cells import cell_len

    return sum(width(column) + 2 for column in table.columns) - 2


def _paragraphs(table: Table, columns: int) -> Group:
    """The table as paragraphs: per row the first cell, and below it the others with headings."""
    from rich.cells import cell_len
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    first, *others = (" ".join(str(column.header).split()) for column in table.columns)
    width = max((len(heading) for heading in others if len(heading) <= LONG), default=0)
    shown: list[Text | Padding] = []
    for name, *cells in zip(*(column.cells for column in table.columns), strict=True):
        # A number says nothing without its heading.
        title = f"{first} {name}" if table.columns[0].no_wrap else str(name) or first
        shown.append(Text(title, style="bold"))
        for heading, cell in zip(others, cells, strict=True):
            if not (heading and str(cell)):
                continue
            line = f"{heading:{width}}  {cell}"
            if len(heading) <= LONG and 2 + cell_len(line) <= columns:
                shown.append(Padding(Text(line), (0, 0, 0, 2)))
            else:
                shown.append(Padding(Text(heading), (0, 0, 0, 2)))
                shown.append(Padding(Text(str(cell)), (0, 0, 0, 4)))
    return Group(*shown)


def complain(message: str) -> None:
    """Write one line to stderr: an error or a notice."""
    if sys.stderr is not None:
        # Names and prompts within the message are as untrusted as a model's text.
        line = " ".join(visible(message).split())
        sys.stderr.write(f"gpt2: {line}\n".encode("utf-8", "replace").decode("utf-8"))
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
