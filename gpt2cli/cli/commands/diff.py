"""`gpt2 diff`: two models, or two precisions of one, side by side on a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import grouped
from gpt2cli.cli.io.progress import token_progress
from gpt2cli.cli.io.terminal import Output, complain_of_dropped, visible
from gpt2cli.cli.render.tables import new_table, print_rich
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from gpt2cli.analysis.comparison import Difference, Summary
    from gpt2cli.api import LoadedModel
    from gpt2cli.text.tokenizer import Tokenizer


TwoModels = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME[:PRECISION]",
        autocompletion=options.complete_model,
        rich_help_panel="Model and machine",
        help="Give it twice: a model as everywhere, and perhaps fp32, bf16, fp16, int8 or int4.",
    ),
]


@grouped
def diff(
    *,
    prompt: options.Prompt = None,
    models: TwoModels = None,
    source: options.PromptSource,
    as_json: options.Json = False,
    adapter: options.Adapter = None,
    machine: options.Machine,
    common: options.Common,
) -> None:
    """Read a text with two models and show where they disagree.

    The models are A and B. Adapters are merged into B; with them a single --model is compared
    with itself.

    For each token: its surprisal, -log2 p in bits, with A and with B; KL(A || B), the
    divergence of A's predictions from B's in bits; what each would have said, and at which rank
    the other has that.

    \b
    Examples:
      gpt2 diff "To be, or not to be" -m bard -m bard:int4
      gpt2 diff "The Eiffel Tower is in Paris" -m 124M -m 355M
      gpt2 diff "Once upon a time" -m 124M --adapter tuned
      gpt2 diff --file essay.txt -m 124M -m 124M:int8 --json
    """
    names = models or []
    if adapter and len(names) == 1:
        names = [*names, *names]
    if len(names) != 2:
        raise UsageError(f"diff compares two models, not {len(names)}: -m NAME -m NAME")
    (name_a, precision_a), (name_b, precision_b) = map(_split, names)
    a = opening.load_named(name_a, machine, precision_a)
    b = opening.load_named(name_b, machine, precision_b, adapter)
    text = source.read(prompt)
    for model in (a, b):
        opening.fetch(model, vocabulary_only=True)
    from gpt2cli.analysis import comparison

    comparison.check_same_vocabulary(names, [a.tokenizer, b.tokenizer])
    ids = a.encode(text, special=source.special)
    shorter = min(a, b, key=lambda model: model.config.context_length)
    window = shorter.fit(ids)
    complain_of_dropped(len(ids) - len(window))
    for model in (a, b):
        opening.fetch(model)
    read_a, read_b = (opening.open_decoder(model, len(window)) for model in (a, b))
    with token_progress(len(window)) as advance:
        differences = list(comparison.compare(read_a, read_b, window, advance))
    summary = comparison.summarise(differences)
    if as_json:
        record = _record((a, b), text, window, differences, summary)
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        table = _table(window[0], differences, a.tokenizer)
        print_rich(table, *_summary((a, b), differences, summary))


def _split(name: str) -> tuple[str, str]:
    """Split NAME:PRECISION; the name of an existing file is not split."""
    model, colon, precision = name.rpartition(":")
    return (model, precision) if colon and not Path(name).exists() else (name, "auto")


def _record(
    models: Sequence[LoadedModel],
    text: str,
    ids: Sequence[int],
    differences: Sequence[Difference],
    summary: Summary,
) -> dict[str, Any]:
    tokenizer = models[0].tokenizer

    def token(token_id: int | None) -> dict[str, Any] | None:
        return None if token_id is None else {"id": token_id, "text": tokenizer.show(token_id)}

    return {
        "prompt": text,
        "unit": "bits",
        "models": [model.facts() for model in models],
        "first": token(ids[0]),
        "tokens": [
            asdict(d) | {"token": token(d.token), "choices": [token(c) for c in d.choices]}
            for d in differences
        ],
        "summary": asdict(summary),
    }


# Rendering.


def _table(first: int, differences: Sequence[Difference], tokenizer: Tokenizer) -> Table:
    """A row per token; a choice that both make is shown once."""
    from gpt2cli.cli.render.charts import label

    choices = ("A would say", "rank in B", "B would say", "rank in A")
    table = new_table("token", "A, bits", "B, bits", "KL, bits", *choices)
    for column in (4, 6):
        table.columns[column].justify = "left"
    table.add_row(label(tokenizer.show(first)))
    for d in differences:
        bits = ("", "") if d.surprisals is None else (f"{s:.3f}" for s in d.surprisals)
        says = [label(tokenizer.show(choice)) for choice in d.choices]
        agreed = d.choices[0] == d.choices[1]
        table.add_row(
            "(next)" if d.token is None else label(tokenizer.show(d.token)),
            *bits,
            f"{d.kl:.4f}",
            says[0],
            *(() if agreed else (f"{d.ranks[0]:,}", says[1], f"{d.ranks[1]:,}")),
            style="" if agreed else "yellow",
        )
    return table


def _summary(
    models: Sequence[LoadedModel], differences: Sequence[Difference], summary: Summary
) -> list[str]:
    lines = [""]
    for i, (letter, model) in enumerate(zip("AB", models, strict=True)):
        line = f"{letter} is {visible(model.title)} in {model.precision}"
        if summary.surprisals is not None:
            bits = summary.surprisals[i]
            line += f": {bits:.3f} bits per token, perplexity {2**bits:,.1f}"
        lines.append(line)
    same = sum(d.choices[0] == d.choices[1] for d in differences)
    lines.append(
        f"KL(A ‖ B) is {summary.mean_kl:.4f} bits on average; they would say the same at "
        f"{same} of {summary.places} places ({summary.agreement:.1%})"
    )
    return lines
