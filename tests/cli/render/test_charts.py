"""Charts in characters."""

from __future__ import annotations

import re
from typing import Any

from gpt2cli.analysis import inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.cli.render import charts
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer


def printed(*parts: Any) -> str:
    from rich.console import Console

    console = Console(width=120, markup=False, highlight=False, emoji=False)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()


def chart(data: Inspection, section: str, **options: Any) -> str:
    settings = {"layers": [1], "head": None, "every": False} | options
    return printed(*charts.charts(data, [section], **settings))


def test_the_chosen_token_is_listed_even_where_it_is_improbable(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer
) -> None:
    worst = inspection.inspect(tiny_model, tiny_tokenizer, [5, 6, 7], top=300).next[-1]
    data = inspection.inspect(tiny_model, tiny_tokenizer, [5, 6, 7], token=worst.id, top=3)
    assert data.target == worst
    assert worst.rank == 300
    lines = chart(data, "next").splitlines()
    assert len(lines) == 2 + 4 + 1
    assert lines[5].split()[0] == charts.label(worst.text)


def test_shades_follow_the_weights(tiny_inspection: Inspection) -> None:
    lines = chart(tiny_inspection, "attention", layers=[1], head=2).splitlines()
    rows = [line for line in lines if re.match(r" +\d+ ", line) and line[20] in " ░▒▓█"]
    weights = tiny_inspection.attention[1, 2]
    assert len(rows) == len(weights) == 32
    for t, (row, line) in enumerate(zip(weights, rows, strict=True)):
        assert int(line[:4]) == t
        for s, weight in enumerate(row[: t + 1]):
            bounds = (1 / 32, 1 / 8, 1 / 4, 1 / 2)
            assert line[20 + 2 * s] == " ░▒▓█"[sum(weight >= b for b in bounds)]
        assert line.split()[-2] == f"{row.max():.2f}"
    every = chart(tiny_inspection, "attention", layers=[0, 1], every=True)
    assert [f"head {layer}.{head}" in every for layer in (0, 1) for head in range(3)] == [True] * 6


def test_labels_fit_their_width_and_show_blanks() -> None:
    assert charts.label(" a\n") == "·a↵"
    assert charts.label("x" * 20, 8) == "xxxxxxx…"
    assert charts.label("日" * 20, 8) == "日日日 …"  # two cells a character
