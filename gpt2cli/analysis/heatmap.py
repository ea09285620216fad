"""A scored text in colours: by surprisal, or by rank as in GLTR.

GLTR: Gehrmann et al. 2019, arXiv:1906.04043. A model's own text stays among its first guesses;
people's does not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2cli.analysis.scoring import Score
from gpt2cli.text.stream import StreamDecoder
from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or tokens that share a character: their text, summed bits and worst rank.

    `bits` is None where nothing preceded.
    """

    text: str
    bits: float | None
    rank: int


@dataclass(frozen=True, slots=True)
class Scale:
    """Classes of a number, and where each next one begins.

    Each has a label, a colour (#rrggbb), and a style for 16 colours, whose
    emphasis grows too, for eyes that do not tell red from green.
    """

    name: str
    limits: tuple[float, ...]
    labels: tuple[str, ...]
    colours: tuple[str, ...]
    few: tuple[str, ...]

    def place(self, value: float) -> int:
        """The class that a number falls into."""
        return bisect_right(self.limits, value)


SURPRISAL = Scale(
    "bits",
    (1, 2, 4, 8, 16),
    ("below 1", "1–2", "2–4", "4–8", "8–16", "16 or more"),
    ("#f7f7f7", "#fff2cc", "#fedf8c", "#fdb863", "#f2814d", "#d7536a"),
    (
        "",
        "black on white",
        "black on cyan",
        "black on yellow",
        "bold white on magenta",
        "bold underline white on red",
    ),
)
RANK = Scale(
    "rank",
    (11, 101, 1001),
    ("top 10", "top 100", "top 1000", "beyond"),
    ("#b7e1a8", "#fbe89a", "#f4a6a0", "#c9b3e6"),
    (
        "black on green",
        "black on yellow",
        "bold white on red",
        "bold underline white on magenta",
    ),
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
