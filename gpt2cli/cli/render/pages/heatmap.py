"""Scored texts in colours, as a page whose colours need no script."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpt2cli.analysis.heatmap import RANK, SURPRISAL, Piece, Scale, classes
from gpt2cli.cli.io.terminal import visible, visible_token
from gpt2cli.cli.render import pages

LISTED = 10  # of the most surprising tokens
BEFORE = 12  # characters that are shown before each of them

_INTRO = """<p class="wide">How surprising each token is to the model. <em>Surprisal</em> is −log₂
of the probability that it gave the token, in <em>bits</em>: none if it was certain, 1 for a
coin's toss, 10 for one chance in 1,024. <em>Rank</em> is the token's place among all that could
have come, 1 being what the model held most probable. Point at a token, tap it, or reach it with
the tab and arrow keys: its numbers appear at the foot of the window.</p>
"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A text in pieces, its name, and its figures as text, by name."""

    name: str
    figures: dict[str, str]
    pieces: Sequence[Piece]


def render(model: str, texts: Sequence[Scored], *, by_rank: bool = False) -> bytes:
    """The page; the texts are escaped."""
    if len(texts) == 1:
        about = pages.excerpt("".join(piece.text for piece in texts[0].pieces[:300]))
    else:
        about = f"{len(texts)} texts"
    body = _INTRO + _keys(texts, by_rank)
    body += "".join(_section(text, number) for number, text in enumerate(texts))
    return pages.document("score", model, about, body, "")


def _keys(texts: Sequence[Scored], by_rank: bool) -> str:
    """What to colour by, and what the colours mean."""
    found = [classes(piece) for text in texts for piece in text.pieces if piece.bits is not None]
    counts = (Counter(bits for bits, _ in found), Counter(rank for _, rank in found))
    rows = "".join(
        _legend(scale, count) for scale, count in zip((SURPRISAL, RANK), counts, strict=True)
    )
    checked = ("", " checked") if by_rank else (" checked", "")
    return f"""<section class="wide keys" aria-label="Colours">
<div class="controls" role="radiogroup" aria-label="Colour by">Colour by
<label><input type="radio" name="by" id="by-bits"{checked[0]}> surprisal</label>
<label><input type="radio" name="by" id="by-rank"{checked[1]}> rank</label></div>
{rows}</section>
"""


def _legend(scale: Scale, counts: Counter[int | None]) -> str:
    total = max(counts.total(), 1)
    items = "".join(
        f'<li class="{scale.name}{i}">{label} <b>{counts[i] / total:.0%}</b></li>'
        for i, label in enumerate(scale.labels)
    )
    unit = f'<li class="unit">{scale.name}</li>'
    return f'<ul class="of-{scale.name}" aria-label="{scale.name}">{unit}{items}</ul>\n'


def _section(text: Scored, number: int) -> str:
    name = html.escape(visible(text.name))
    figures = "".join(
        f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in text.figures.items()
    )
    return f"""<section class="wide" aria-labelledby="text{number}">
<h2 id="text{number}">{name}</h2>
<div class="split">
<pre class="text" data-rove role="group" aria-labelledby="text{number}">{_spans(text.pieces)}</pre>
<div class="side">
<dl>{figures}</dl>
{_surprising(text.pieces)}</div>
</div>
</section>
"""


def _spans(pieces: Iterable[Piece]) -> str:
    return "".join(map(_span, pieces))


def _span(piece: Piece) -> str:
    bits, rank = classes(piece)
    kind = "" if piece.bits is None else f' class="bits{bits} rank{rank}"'
    tip = html.escape(f"“{visible_token(piece.text.encode())}”: {_numbers(piece)}")
    return f'<span{kind} tabindex="0" data-tip="{tip}">{html.escape(visible(piece.text))}</span>'


def _numbers(piece: Piece) -> str:
    if piece.bits is None:
        return "not scored, for nothing precedes it"
    percent = 100 * 2.0**-piece.bits
    shown = f"{percent:.2f}" if percent >= 0.1 else f"{percent:.2g}"
    return f"{piece.bits:.2f} bits (a probability of {shown} %), rank {piece.rank:,}"


def _surprising(pieces: Sequence[Piece]) -> str:
    """A table of the most surprising tokens, each after the text that precedes it."""
    scored = [i for i, piece in enumerate(pieces) if piece.bits is not None]
    most = sorted(scored, key=lambda i: -(pieces[i].bits or 0))[:LISTED]
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("token", "bits", "rank"))
    rows = "".join(_row(pieces, i) for i in most)
    return f"""<table class="bars"><caption>Most surprising</caption>
<tr>{heads}</tr>{rows}</table>
"""


def _row(pieces: Sequence[Piece], i: int) -> str:
    before = "".join(piece.text for piece in pieces[max(0, i - BEFORE) : i])
    token = html.escape(visible_token(pieces[i].text.encode())[:BEFORE])
    return (
        f'<tr><th scope="row">{html.escape(visible_token(before[-BEFORE:].encode()))}'
        f"<b>{token}</b></th><td>{pieces[i].bits:.2f}</td><td>{pieces[i].rank:,}</td></tr>"
    )
