"""Kinds of heads, for a terminal or a pipe alike: a table, and a map by layer and head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from gpt2cli.analysis.heads import KINDS, HeadScores
from gpt2cli.cli.render.tables import new_table

LISTED = 8  # heads of a kind
NAMES = {"induction": "induction", "previous": "previous token", "first": "first token"}
COLOURS = {"induction": "red", "previous": "cyan", "first": "yellow"}


def tables(found: HeadScores, least: float) -> Iterator[Any]:
    """Heads by kind, and the kind of each head."""
    yield Text("Heads by kind: where they look in random tokens that repeat", style="bold")
    yield _kinds(found, least)
    yield ""
    yield _Map(found, least)


def _kinds(found: HeadScores, least: float) -> Table:
    table = new_table("kind", "head", "", "score", text=3)
    for kind, name in NAMES.items():
        heads = found.of_kind(kind, least)
        for head, score in list(heads.items())[:LISTED]:
            table.add_row(name, head, Bar(1, 0, score, color=COLOURS[kind]), f"{score:.3f}")
        if (more := len(heads) - LISTED) > 0:
            table.add_row(name, f"{more} more", "", "")
        if not heads:
            head, score = next(iter(found.of_kind(kind, 0).items()))
            bar = Bar(1, 0, score, color=COLOURS[kind])
            table.add_row(name, f"none; {head} is nearest", bar, f"{score:.3f}")
    return table


@dataclass(frozen=True, slots=True)
class _Map:
    """The letter of each head's kind, and where there is room its score in per cent."""

    found: HeadScores
    least: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layers, heads = self.found.induction.shape
        width = 5 if 3 + 5 * heads <= options.max_width else 2
        yield Text("Layers (rows) and heads (columns): i induction, p previous, f first token")
        numbers = (str(i) if width == 5 or i % 5 == 0 else "" for i in range(heads))
        yield Text("   " + "".join(f"{n:>{width}}" for n in numbers), style="dim", no_wrap=True)
        for layer in range(layers):
            line = Text(f"{layer:>2} ", no_wrap=True)
            for head in range(heads):
                kind = max(KINDS, key=lambda k: getattr(self.found, k)[layer, head])
                score = getattr(self.found, kind)[layer, head]
                if score < self.least:
                    line.append(f"{'·':>{width}}", style="dim")
                else:
                    said = f"{kind[0]}{100 * score:.0f}" if width == 5 else kind[0]
                    line.append(f"{said:>{width}}", style=COLOURS[kind])
            yield line
