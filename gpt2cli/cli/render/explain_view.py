"""`gpt2 generate --explain-sampling`: the candidates of the next token, rule by rule."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gpt2cli.cli.io.terminal import Output, visible
from gpt2cli.cli.render.tables import new_table, print_rich

if TYPE_CHECKING:
    from gpt2cli.sampling.sampler import Stage
    from gpt2cli.text.tokenizer import Tokenizer


IN_TABLE = ("best, in %", "second", "third")  # tokens that fit a line


def show_stages(
    stages: list[Stage], tokenizer: Tokenizer, output: Output, *, as_json: bool
) -> None:
    """A table, or a JSON object per rule."""
    if as_json:
        for stage in stages:
            top = [
                {"id": i, "token": tokenizer.decode([i]), "before": before, "after": after}
                for i, before, after in stage.top
            ]
            record = {"rule": stage.rule, "candidates": stage.candidates, "top": top}
            output.write(json.dumps(record, ensure_ascii=False) + "\n")
        return
    table = new_table("rule", "candidates", *IN_TABLE)
    for column in table.columns[2:]:
        column.justify = "left"
    for n, stage in enumerate(stages):
        best = stage.top[: len(IN_TABLE)]
        cells = (_cell(i, b, a, tokenizer, first=n == 0) for i, b, a in best)
        table.add_row(stage.rule, f"{stage.candidates:,}", *cells)
    print_rich(table)


def _cell(i: int, before: float, after: float, tokenizer: Tokenizer, *, first: bool) -> str:
    token = visible(repr(tokenizer.decode([i])))
    new = f"{100 * after:.1f}" if after else "–"
    return f"{token} {new}" if first else f"{token} {100 * before:.1f} → {new}"
