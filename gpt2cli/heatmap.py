"""A scored text in colours: by surprisal, or by rank as in GLTR, and as a page of HTML.

GLTR: Gehrmann et al. 2019, arXiv:1906.04043. A model's own text stays among its first guesses;
people's does not.
"""

from __future__ import annotations

import html
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt2cli.scoring import Score
from gpt2cli.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or tokens that share a character: their text, bits added up, the worst rank.

    `bits` is None where nothing preceded.
    """

    text: str
    bits: float | None
    rank: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Classes of a number: a label and a colour (#rrggbb) each, and where the next begins."""

    name: str
    limits: tuple[float, ...]
    labels: tuple[str, ...]
    colours: tuple[str, ...]

    def place(self, value: float) -> int:
        """The class that a number falls into."""
        return bisect_right(self.limits, value)


SURPRISAL = Scale(
    "bits",
    (1, 2, 4, 8, 16),
    ("below 1", "1–2", "2–4", "4–8", "8–16", "16 or more"),
    ("#f7f7f7", "#fff2cc", "#fedf8c", "#fdb863", "#f2814d", "#d7536a"),
)
RANK = Scale(
    "rank",
    (11, 101, 1001),
    ("top 10", "top 100", "top 1000", "beyond"),
    ("#b7e1a8", "#fbe89a", "#f4a6a0", "#c9b3e6"),
)


def classes(piece: Piece) -> tuple[int | None, int | None]:
    """A piece's class by surprisal and by rank; None where it was not scored."""
    if piece.bits is None:
        return None, None
    return SURPRISAL.place(piece.bits), RANK.place(piece.rank)


def pieces(tokenizer: Tokenizer, score: Score) -> Iterator[Piece]:
    """The text of a score in pieces of whole characters."""
    stream = StreamDecoder(tokenizer)
    bits, rank = 0.0, 0
    numbers = zip(score.ids, score.bits.tolist(), score.ranks.tolist(), strict=True)
    for i, (token_id, own, place) in enumerate(numbers, start=1):
        text = stream.push(token_id)
        bits, rank = bits + own, max(rank, place)
        if i == len(score.ids):
            text += stream.flush()
        if text:
            yield Piece(text, None if math.isnan(bits) else bits, rank)
            bits, rank = 0.0, 0


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
  font: 1rem/1.7 system-ui, sans-serif; }}
pre {{ font: 1rem/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
span {{ border-radius: 3px; }}
.legend span {{ padding: 0.1rem 0.5rem; }}
body:has(#bits:checked) .rank, body:has(#rank:checked) .bits {{ display: none; }}
{style}</style>
<h1>{title}</h1>
<p>Coloured by
<label><input type="radio" name="by" id="bits"{bits}> surprisal</label>
<label><input type="radio" name="by" id="rank"{rank}> rank</label></p>
{legends}{texts}</html>
"""


def page(title: str, texts: Iterable[tuple[str, Iterable[Piece]]], *, by_rank: bool = False) -> str:
    """A self-contained page of texts, each with its heading; whatever they hold stays text."""
    shown = "".join(
        f"<h2>{html.escape(heading)}</h2>\n<pre>{''.join(map(_span, parts))}</pre>\n"
        for heading, parts in texts
    )
    return _PAGE.format(
        title=html.escape(title),
        style="".join(map(_style, (SURPRISAL, RANK))),
        legends="".join(map(_legend, (SURPRISAL, RANK))),
        bits="" if by_rank else " checked",
        rank=" checked" if by_rank else "",
        texts=shown,
    )


def _style(scale: Scale) -> str:
    return "".join(
        f"body:has(#{scale.name}:checked) .{scale.name}{i} {{ background: {colour}; }}\n"
        for i, colour in enumerate(scale.colours)
    )


def _legend(scale: Scale) -> str:
    chips = " ".join(
        f'<span class="{scale.name}{i}">{label}</span>' for i, label in enumerate(scale.labels)
    )
    return f'<p class="legend {scale.name}">{scale.name}: {chips}</p>\n'


def _span(piece: Piece) -> str:
    text = html.escape(piece.text)
    bits, rank = classes(piece)
    if piece.bits is None:
        return f'<span title="not scored: nothing precedes it">{text}</span>'
    tip = f"{piece.bits:.2f} bits, rank {piece.rank:,}"
    return f'<span class="bits{bits} rank{rank}" title="{tip}">{text}</span>'
