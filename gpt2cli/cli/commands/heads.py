"""`gpt2 heads`: which attention heads are induction, previous-token and first-token heads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import Output
from gpt2cli.cli.render.tables import print_rich
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from gpt2cli.analysis.heads import HeadScores
    from gpt2cli.api import LoadedModel


@dataclass(frozen=True)
class Scoring(Group):
    """Scores"""

    least: Annotated[
        float, typer.Option(metavar="N", help="A head is of a kind from this score on, 0 to 1.")
    ] = 0.4
    texts: Annotated[int, typer.Option(min=1, metavar="N", help="Texts to read.")] = 8
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of their random tokens.")] = 0


@grouped
def heads(
    *,
    scoring: Scoring,
    as_json: options.Json = False,
    model: options.ModelName = "124M",
    adapter: options.Adapter = None,
    machine: options.Machine,
    common: options.Common,
) -> None:
    """Show induction, previous-token and first-token heads.

    The model reads random tokens, four times the same 25, and each head is scored by where it
    looks: an induction head at what followed the same token before, a previous-token head one
    token back, a first-token head at the first of all.

    \b
    Examples:
      gpt2 heads -m 124M
      gpt2 heads -m bard --least 0.1
      gpt2 heads -m 355M --json
    """
    if not 0 <= scoring.least <= 1:
        raise UsageError(f"least must be 0 to 1, not {scoring.least:g}", "least")
    opened = opening.load_named(model, machine, "fp32", adapter)
    opening.fetch(opened)
    found = _scored(opened, scoring)
    if as_json:
        record = {
            **opened.facts(),
            "engine": "PyTorch",
            "seed": scoring.seed,
            "least": scoring.least,
            **found.as_dict(),
            "heads": found.named(scoring.least),
        }
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        from gpt2cli.cli.render import heads_view

        print_rich(*heads_view.tables(found, scoring.least))


def _scored(model: LoadedModel, scoring: Scoring) -> HeadScores:
    """The scores, with a bar."""
    from gpt2cli.analysis.heads import score_heads

    network, texts = model.network(), scoring.texts
    with token_progress(texts, unit="texts") as advance:
        return score_heads(
            network, model.tokenizer, seed=scoring.seed, texts=texts, advance=advance
        )
