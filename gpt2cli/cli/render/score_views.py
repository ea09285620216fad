"""What `gpt2 score` prints: tables, JSON, CSV, a heat map, a page of HTML."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import Output, palette, visible
from gpt2cli.cli.render import score_top
from gpt2cli.cli.render.tables import new_table, print_rich
from gpt2cli.files import write_file

if TYPE_CHECKING:
    from rich.text import Text

    from gpt2cli.analysis.heatmap import Scale
    from gpt2cli.analysis.ranking import Choice
    from gpt2cli.analysis.scoring import Score, Summary
    from gpt2cli.cli.io.terminal import Palette
    from gpt2cli.text.tokenizer import Tokenizer

Segments = Iterable[tuple[int, "Score"]]
"""Segments of texts, each with its text's number."""


def figures(summary: Summary) -> dict[str, Any]:
    """A summary for programs."""
    return {
        "perplexity": summary.perplexity,
        "bits_per_byte": summary.bits_per_byte,
        "bits_per_token": summary.bits_per_token,
        "tokens": summary.tokens,
        "bytes": summary.size,
    }


def print_json(
    names: Sequence[str],
    found: Segments,
    facts: dict[str, Any],
    tokenizer: Tokenizer,
    top: int | None = None,
) -> None:
    """An object for each text, with the surprisal and rank of each token."""
    from gpt2cli.analysis import scoring

    output = Output()
    for name, score in zip(names, scoring.join(found), strict=True):
        record = {
            "name": name,
            **figures(score.summary),
            "token_ids": score.ids,
            "token_texts": [tokenizer.decode([i]) for i in score.ids],
            "surprisal_bits": [None if math.isnan(b) else b for b in score.bits.tolist()],
            "ranks": [rank or None for rank in score.ranks.tolist()],
            **facts,
        }
        if top is not None:
            record["top"] = [token.as_dict(tokenizer) for token in score_top.find(score, top)]
        output.write(json.dumps(record, ensure_ascii=False) + "\n")


def print_csv(names: Sequence[str], found: Segments, tokenizer: Tokenizer) -> None:
    """A row per token, as soon as it is known; unscored fields are empty."""
    output = Output()
    output.write("name,index,id,text,bits,rank\n")
    for text, parts in groupby(found, key=itemgetter(0)):
        index = count()
        for _, score in parts:
            buffer = io.StringIO()
            rows = csv.writer(buffer, lineterminator="\n")
            numbers = zip(score.ids, score.bits.tolist(), score.ranks.tolist(), strict=True)
            for token_id, bits, rank in numbers:
                bits = "" if math.isnan(bits) else f"{bits:.6g}"
                shown = tokenizer.decode([token_id])
                rows.writerow([names[text], next(index), token_id, shown, bits, rank or ""])
            output.write(buffer.getvalue())


def print_table(names: Sequence[str], found: Segments) -> None:
    """A row per text, and one for all of them together."""
    from gpt2cli.analysis.scoring import Summary

    summaries = [Summary(0, 0, 0.0) for _ in names]
    for text, score in found:
        summaries[text] += score.summary
    rows = list(zip(names, summaries, strict=True))
    if len(rows) > 1:
        rows.append(("total", sum(summaries, Summary(0, 0, 0.0))))
    table = new_table("text", "tokens", "bytes", "perplexity", "bits/token", "bits/byte")
    for name, summary in rows:
        table.add_row(
            visible(name),
            f"{summary.tokens:,}",
            f"{summary.size:,}",
            _number(summary.perplexity, 2),
            _number(summary.bits_per_token, 3),
            _number(summary.bits_per_byte, 3),
        )
    print_rich(table)


def print_choices(choices: list[Choice]) -> None:
    """A row per choice, with its share of the probability of all choices."""
    table = new_table("choice", "log p", "per token", "per byte", "share", "tokens")
    for choice in choices:
        table.add_row(
            visible(choice.text),
            f"{choice.log_probability:.3f}",
            f"{choice.per_token:.3f}",
            f"{choice.per_byte:.3f}",
            f"{choice.share:.1%}",
            str(choice.tokens),
        )
    print_rich(table)


def print_choices_json(context: str, choices: list[Choice], facts: dict[str, Any]) -> None:
    """An object per choice, the most probable first."""
    output = Output()
    for choice in choices:
        values = asdict(choice) | {"per_token": choice.per_token, "per_byte": choice.per_byte}
        values["bytes"] = values.pop("size")
        record = {"context": context, **values, **facts}
        output.write(json.dumps(record, ensure_ascii=False) + "\n")


def print_heatmap(
    names: Sequence[str], found: Segments, tokenizer: Tokenizer, *, by_rank: bool
) -> None:
    """Each text in colours, or with marks where there are none, a legend and its figures."""
    from rich.text import Text

    from gpt2cli.analysis import heatmap, scoring

    scale, colours = heatmap.RANK if by_rank else heatmap.SURPRISAL, palette()
    for name, score in zip(names, scoring.join(found), strict=True):
        if len(names) > 1:
            print_rich(Text(visible(name), style="bold"), wrap=False)
        shown = Text()
        for piece in heatmap.pieces(tokenizer, score):
            bits, rank = heatmap.classes(piece)
            shown.append_text(
                _coloured(visible(piece.text), scale, rank if by_rank else bits, colours)
            )
        print_rich(shown, wrap=False)
        print_rich(_legend(scale, colours), _line(score.summary))


def write_page(
    path: Path,
    model: str,
    names: Sequence[str],
    found: Segments,
    tokenizer: Tokenizer,
    *,
    by_rank: bool,
) -> None:
    """The heat map as a page of HTML. Raises `GPT2CLIError` where it cannot be written."""
    from gpt2cli.analysis import heatmap, scoring
    from gpt2cli.cli.render.pages import heatmap as page

    texts = [
        page.Scored(name, _figures(score.summary), list(heatmap.pieces(tokenizer, score)))
        for name, score in zip(names, scoring.join(found), strict=True)
    ]
    write_file(path, page.render(model, texts, by_rank=by_rank))


def _figures(summary: Summary) -> dict[str, str]:
    return {
        "perplexity": _number(summary.perplexity, 2),
        "bits per byte": _number(summary.bits_per_byte, 3),
        "bits per token": _number(summary.bits_per_token, 3),
        "tokens": f"{summary.tokens:,}",
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _line(summary: Summary) -> str:
    return (
        f"perplexity {_number(summary.perplexity, 2)}, "
        f"{_number(summary.bits_per_byte, 3)} bits per byte, {summary.tokens:,} tokens"
    )


def _coloured(text: str, scale: Scale, place: int | None, colours: Palette | None) -> Text:
    """A piece of text styled by its class; without colours {1}, {2}, … after it."""
    from rich.text import Text

    if place is None:
        return Text(text)
    if colours:
        few = colours == "standard"
        return Text(text, style=scale.few[place] if few else f"#222222 on {scale.colours[place]}")
    written = text.rstrip()
    mark = f"{{{place}}}" if place else ""
    return Text(f"{written}{mark}{text[len(written) :]}")


def _legend(scale: Scale, colours: Palette | None) -> Text:
    from rich.text import Text

    legend = Text(f"{scale.name}:")
    for i, label in enumerate(scale.labels):
        if colours:
            legend.append(" ").append_text(_coloured(f" {label} ", scale, i, colours))
        else:
            legend.append(", " if i else " ").append_text(_coloured(label, scale, i, colours))
    return legend
