"""`gpt2 tokenize`: the pieces that a text is cut into, and their ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.inputs import (
    NamedText,
    input_names,
    is_text,
    named_texts,
    read_stdin,
    read_text,
    stdin_is_piped,
)
from gpt2cli.cli.io.terminal import Output, notice, visible_token
from gpt2cli.cli.render.tables import make_console, print_rich
from gpt2cli.errors import UsageError
from gpt2cli.files import read_file

if TYPE_CHECKING:
    from rich.text import Text

    from gpt2cli.text.tokenizer import Tokenizer

COLOURS = ("black on cyan", "black on green", "black on yellow", "black on magenta")


@dataclass(frozen=True)
class Texts(Group):
    """Text"""

    text: Annotated[
        str | None, typer.Option("--text", metavar="TEXT", help="Cut up this text.")
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Read the text, or the ids, from a file."
        ),
    ] = None
    keep_newline: options.KeepNewline = False
    no_special: options.NoSpecial = False


@dataclass(frozen=True)
class Shown(Group):
    """Output"""

    ids_only: Annotated[
        bool, typer.Option("--ids", help="Print the ids alone, with spaces between them.")
    ] = False
    count: Annotated[
        bool, typer.Option("--count", help="Print the number of tokens alone, per file if several.")
    ] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a list of objects with id, text and bytes.")
    ] = False
    decode: Annotated[
        bool, typer.Option("--decode", help="The other way: ids to text, byte for byte.")
    ] = False

    def check(self, texts: Texts) -> None:
        """Raise `UsageError` for two options that exclude each other."""
        shapes = {
            "--decode": self.decode,
            "--ids": self.ids_only,
            "--count": self.count,
            "--json": self.as_json,
        }
        if self.decode:
            shapes |= {"--json": False, "--no-special": texts.no_special}
            shapes |= {"--text": texts.text is not None}
        if len(both := [name for name, there in shapes.items() if there]) > 1:
            raise UsageError(f"{both[0]} and {both[1]} exclude each other")


Given = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|TEXT",
        help="Files to cut up, or a text; with --decode, ids. - reads stdin.",
    ),
]


@grouped
def tokenize(
    *,
    given: Given = None,
    texts: Texts,
    shown: Shown,
    model: options.ModelName = "124M",
    offline: options.Offline = False,
    messages: options.Messages,
) -> None:
    """Show the tokens of a text as the model sees them. Needs the vocabulary, not the weights.

    · is a space, ↵ a newline, ⇥ a tab, and \\xhh a byte of a character that spans tokens.
    An argument is a file's name, as in gpt2 score; where there is no such file and it does
    not look like a name, it is a text. --text and stdin are never names.

    \b
    Examples:
      gpt2 tokenize "Hello, I'm a language model,"
      gpt2 tokenize -m bard --ids < play.txt | gpt2 tokenize -m bard --decode
      gpt2 tokenize --count *.txt
    """
    shown.check(texts)
    opened = opening.load_named(model, options.Machine(device="cpu", offline=offline))
    arguments = given or []
    ids = _read_ids(arguments, texts.file) if shown.decode else []
    read = [] if shown.decode else _texts(arguments, texts, names_only=shown.count)
    output = Output()
    opening.fetch(opened, vocabulary_only=True)
    tokenizer, special = opened.tokenizer, not texts.no_special
    if shown.count:
        counts = [
            (name, len(tokenizer.encode_pieces(pieces, special=special))) for name, pieces in read
        ]
        output.write(_counts(counts))
        return
    if shown.decode and not shown.as_json:
        output.write_bytes(tokenizer.decode_bytes(ids))
        if output.terminal:
            output.end_line()
        return
    rows = [tokenizer.encode("".join(pieces), special=special) for _, pieces in read]
    for row in rows or [ids]:
        pieces = [(i, tokenizer.decode_bytes([i])) for i in row]
        _show(pieces, tokenizer, shown, output)
        notice(_count(pieces), asked=messages.verbose)


def _show(
    pieces: list[tuple[int, bytes]], tokenizer: Tokenizer, shown: Shown, output: Output
) -> None:
    if shown.as_json:
        listed = [{"id": i, "text": p.decode("utf-8", "replace"), "bytes": [*p]} for i, p in pieces]
        output.write(json.dumps(listed, ensure_ascii=False) + "\n")
    elif shown.ids_only:
        output.write(" ".join(str(i) for i, _ in pieces) + "\n")
    elif output.terminal:
        _print_boxes(pieces, tokenizer)
    else:
        output.write("".join(f"{i}\t{visible_token(piece)}\n" for i, piece in pieces))


def _texts(arguments: list[str], given: Texts, *, names_only: bool) -> list[NamedText]:
    """Files and a text, as in `gpt2 score`; or an argument that is a text itself."""
    no_names = not arguments or (len(arguments) == 1 and is_text(arguments[0]))
    if given.text is None and no_names and not names_only:
        argument = arguments[0] if arguments else None
        own = read_text(argument, given.file, given.keep_newline)
        texts: list[NamedText] = [] if own is None else [("text", [own])]
    else:
        names = [*arguments, *([str(given.file)] if given.file else [])]
        texts = named_texts(input_names(names, given.text), given.text, given.keep_newline)
    if not texts:
        raise UsageError("there is no text; name a file, pipe one in, or give --text")
    return texts


def _read_ids(words: list[str], file: Path | None) -> list[int]:
    """Ids from the arguments, else a file or stdin, separated by spaces, commas or newlines."""
    if file is not None:
        words = [*words, read_file(file)]
    elif words == ["-"] or (not words and stdin_is_piped()):
        words = [read_stdin()]
    elif not words:
        raise UsageError("there are no ids; give them as arguments, in a pipe or with --file")
    ids = re.split(r"[\s,\[\]]+", " ".join(words))
    for word in ids:
        if word and not (word.isascii() and word.isdigit()):
            raise UsageError(f"{word[:40]!r} is not a token id; those are numbers such as 15496")
    # 20 digits are past any vocabulary, and thousands are past what int() reads.
    return [int((word.lstrip("0") or "0")[:20]) for word in ids if word]


def _counts(counts: list[tuple[str, int]]) -> str:
    """Print a number; or one per name and their total, as wc does."""
    if len(counts) == 1:
        return f"{counts[0][1]}\n"
    total = sum(number for _, number in counts)
    width = len(str(total))
    return "".join(f"{number:{width}} {name}\n" for name, number in [*counts, ("total", total)])


def _print_boxes(pieces: list[tuple[int, bytes]], tokenizer: Tokenizer) -> None:
    """Coloured pieces above their ids, in as many rows of boxes as the terminal needs."""
    width = make_console().width
    cells = []
    for n, (i, piece) in enumerate(pieces):
        style = "white on red" if i == tokenizer.end_of_text else COLOURS[n % len(COLOURS)]
        cells.append((visible_token(piece), str(i), style))
    for row in _rows(cells, width):
        print_rich(row)


_BORDERS = (("┌", "┬", "┐"), ("│", "│", "│"), ("│", "│", "│"), ("└", "┴", "┘"))

Cell = tuple[str, str, str]
"""What is shown of a token: its text, id and style."""


def _rows(cells: list[Cell], width: int) -> Iterator[Text]:
    """Cells in rows that fit `width`; a new line of the text begins a new row too."""
    row: list[Cell] = []
    used = 1
    for cell in cells:
        needed = _width(cell, width) + 1
        if row and (used + needed > width or row[-1][0].endswith("↵")):
            yield _box(row, width)
            row, used = [], 1
        row.append(cell)
        used += needed
    if row:
        yield _box(row, width)


def _width(cell: Cell, most: int) -> int:
    from rich.cells import cell_len

    return min(max(cell_len(cell[0]), len(cell[1])), most - 2)


def _box(row: list[Cell], most: int) -> Text:
    """Four lines: a border, the pieces, their ids, a border."""
    from rich.text import Text

    widths = [_width(cell, most) for cell in row]
    lines = [Text(no_wrap=True) for _ in range(4)]
    for line, (left, middle, right) in zip(lines, _BORDERS, strict=True):
        for n, ((piece, number, style), width) in enumerate(zip(row, widths, strict=True)):
            line.append(middle if n else left, style="dim")
            if line is lines[1]:
                line.append_text(_cut(piece, width, style))
            elif line is lines[2]:
                line.append_text(_cut(number, width, "dim"))
            else:
                line.append("─" * width, style="dim")
        line.append(right, style="dim")
    return Text("\n").join(lines)


def _cut(text: str, width: int, style: str) -> Text:
    from rich.text import Text

    piece = Text(text, style=style)
    piece.truncate(width, overflow="ellipsis", pad=True)
    return piece


def _count(pieces: list[tuple[int, bytes]]) -> str:
    size = sum(len(piece) for _, piece in pieces)
    each = f", {size / len(pieces):.2f} bytes per token" if pieces else ""
    return f"{len(pieces):,} tokens, {size:,} bytes{each}"
