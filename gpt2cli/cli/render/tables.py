"""Tables of Rich on stdout, as wide as the terminal; as paragraphs where it is narrow."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import Output, palette, visible

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Column, Table

LONG = 20  # characters of a heading that has a line of its own
PIPE_WIDTH = 120  # columns, where no terminal says how many there are
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)


def make_console() -> Console:
    """Rich on stdout, where nothing is taken for markup, with the colours of `palette`."""
    from rich.console import Console

    colours = palette()
    # Rich takes every dumb terminal for one of 80 columns, and a pipe too.
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
    # Before Python 3.11 a terminal of unknown size is one of 0 columns.
    console.width, console.height = width or PIPE_WIDTH, height or 25
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
    # Rich would make a closed pipe its own affair, and exit with 1.
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
    """The same, row by row: the first cell, and below it each other behind its heading."""
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
