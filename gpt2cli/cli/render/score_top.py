"""`gpt2 score --top`: the tokens of a text that a model was most surprised by."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import visible, visible_token
from gpt2cli.cli.render.tables import new_table, print_rich

if TYPE_CHECKING:
    from gpt2cli.analysis.scoring import Score
    from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Token:
    """One token, the `position`-th of its text from 0, with its surprisal and rank."""

    position: int
    id: int
    bits: float
    rank: int

    def as_dict(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self) | {"text": tokenizer.decode([self.id])}


def find(score: Score, count: int) -> list[Token]:
    """The `count` most surprising tokens, most surprising first."""
    rows = enumerate(zip(score.ids, score.bits.tolist(), score.ranks.tolist(), strict=True))
    tokens = (Token(place, *row) for place, row in rows)
    return _best((token for token in tokens if not math.isnan(token.bits)), count)


def _best(tokens: Iterable[Token], count: int) -> list[Token]:
    return heapq.nlargest(count, tokens, key=lambda token: token.bits)


def print_top(
    names: Sequence[str], found: Iterable[tuple[int, Score]], tokenizer: Tokenizer, count: int
) -> None:
    """A row for each of the most surprising tokens of each text; no others are kept."""
    best: list[list[Token]] = [[] for _ in names]
    read = [0 for _ in names]
    for text, score in found:
        fresh = [replace(t, position=t.position + read[text]) for t in find(score, count)]
        best[text] = _best([*best[text], *fresh], count)
        read[text] += len(score.ids)
    name = ("text",) if len(names) > 1 else ()
    table = new_table(*name, "token", "bits", "rank", "position", text=1 + len(name))
    for title, tokens in zip(names, best, strict=True):
        for token in tokens:
            table.add_row(
                *((visible(title),) if name else ()),
                visible_token(tokenizer.decode_bytes([token.id])),
                f"{token.bits:.3f}",
                f"{token.rank:,}",
                f"{token.position:,}",
            )
    print_rich(table)
