"""A table of shares, one for each row and column: numbers, or shades where it is too wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from gpt2cli.arrays import NDArray
from gpt2cli.cli.render.charts import COLOURS, SHADES

NUMBER = 5  # characters of a column of numbers
LEVELS = (1 / 32, 1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True, slots=True)
class Grid:
    """Shares of 1 as whole per cents, the larger the more colour.

    Where they do not fit they are shades of two characters, a minus for what is negative.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: NDArray  # (rows, columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = min(max(map(cell_len, self.rows)), options.max_width // 3) + 1
        fits = left + NUMBER * len(self.columns) <= options.max_width
        width = NUMBER if fits else 2
        unit = "per cent" if fits else "░ from 3 %, ▒ from 12 %, ▓ from 25 %, █ from 50 %"
        yield Text(f"{self.title}, {unit}", style="bold")
        shown = [name if fits or i % 5 == 0 else "" for i, name in enumerate(self.columns)]
        heads = "".join(f"{name:>{width}}" for name in shown)
        yield Text(" " * left + heads, style="dim", no_wrap=True)
        for name, values in zip(self.rows, self.values.tolist(), strict=True):
            line = Text(set_cell_size(name, left), no_wrap=True)
            for value in values:
                level = sum(abs(value) >= bound for bound in LEVELS)
                shade = "− " if value <= -LEVELS[0] else SHADES[level] * 2
                # + 0 makes a zero of what rounds to minus zero.
                number = f"{round(100 * value) + 0:>{NUMBER}}"
                line.append(number if fits else shade, style=COLOURS[level])
            yield line
