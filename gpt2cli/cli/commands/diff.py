"""`gpt2 diff`: two models, or two precisions of one, side by side on a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import options
from gpt2cli.cli.io.inputs import read_text
from gpt2cli.cli.io.progress import fetch, open_decoder, token_progress
from gpt2cli.cli.io.terminal import Output, complain_of_dropped, new_table, print_rich, visible
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from gpt2cli.analysis.comparison import Difference, Summary
    from gpt2cli.decoders.opening import Variant
    from gpt2cli.text.tokenizer import Tokenizer


def diff(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="Text to read; - reads stdin. Piped text comes before it."
        ),
    ] = None,
    models: options.TwoModels = None,
    as_json: options.Json = False,
    file: options.File = None,
    keep_newline: options.KeepNewline = False,
    no_special: options.NoSpecial = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    color: options.Color = "auto",
    debug: options.Debug = False,
) -> None:
    """Read a text with two models and show where they disagree.

    The models are A and B.

    For each token: its surprisal, -log2 p in bits, with A and with B; KL(A || B), the bits
    that A's predictions cost more when coded with B's probabilities; what each would have said, and
    at which rank the other has that.

    \b
    Examples:
      gpt2 diff "To be, or not to be" -m bard -m bard:int4
      gpt2 diff "The Eiffel Tower is in Paris" -m 124M -m 355M
      gpt2 diff --file essay.txt -m 124M -m 124M:int8 --json
    """
    from gpt2cli.system.device import check_names, limit_threads

    if threads is not None:
        limit_threads(threads)
    check_names(device, "auto")
    if models is None or len(models) != 2:
        raise UsageError(f"diff compares two models, not {len(models or [])}: -m NAME -m NAME")
    from gpt2cli.analysis import comparison
    from gpt2cli.decoders import opening
    from gpt2cli.text.window import fit_prompt

    variants = [opening.parse_variant(name, device) for name in models]
    text = read_text(prompt, file, keep_newline) or ""
    vocabularies = [fetch(v.source, offline, vocabulary_only=True) for v in variants]
    tokenizers = [opening.open_tokenizer(vocabulary) for vocabulary in vocabularies]
    comparison.check_same_vocabulary(models, tokenizers)
    tokenizer = tokenizers[0]
    ids = opening.encode_prompt(tokenizer, text, special=not no_special)
    window = fit_prompt(ids, min(v.config().context_length for v in vocabularies))
    complain_of_dropped(len(ids) - len(window))
    variants = [replace(v, source=fetch(v.source, offline)) for v in variants]
    decoder_a, decoder_b = (
        open_decoder(v.source, v.placement, tokenizer.size, 1, len(window), v.quantize)
        for v in variants
    )
    differences = []
    with token_progress(len(window)) as advance:
        for difference in comparison.compare(decoder_a, decoder_b, window):
            differences.append(difference)
            advance(1)
    summary = comparison.summarise(differences)
    if as_json:
        record = _record(variants, text, window, differences, summary, tokenizer)
        Output().write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        print_rich(
            _table(window[0], differences, tokenizer), *_summary(variants, differences, summary)
        )


def _record(
    variants: Sequence[Variant],
    text: str,
    ids: Sequence[int],
    differences: Sequence[Difference],
    summary: Summary,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    from gpt2cli.decoders import opening

    def token(token_id: int | None) -> dict[str, Any] | None:
        return None if token_id is None else {"id": token_id, "text": tokenizer.show(token_id)}

    return {
        "prompt": text,
        "unit": "bits",
        "models": [
            {
                "model": v.source.name,
                "precision": v.precision,
                "device": v.placement.device,
                "engine": opening.engine_name(v.placement),
            }
            for v in variants
        ],
        "first": token(ids[0]),
        "tokens": [
            asdict(d) | {"token": token(d.token), "choices": [token(c) for c in d.choices]}
            for d in differences
        ],
        "summary": asdict(summary),
    }


# Rendering.


def _table(first: int, differences: Sequence[Difference], tokenizer: Tokenizer) -> Table:
    """A row a token; a choice that both make is said once."""
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
    variants: Sequence[Variant], differences: Sequence[Difference], summary: Summary
) -> list[str]:
    lines = [""]
    for i, (letter, variant) in enumerate(zip("AB", variants, strict=True)):
        line = f"{letter} is {visible(variant.source.name)} in {variant.precision}"
        if summary.surprisals is not None:
            bits = summary.surprisals[i]
            line += f": {bits:.3f} bits a token, perplexity {2**bits:,.1f}"
        lines.append(line)
    same = sum(d.choices[0] == d.choices[1] for d in differences)
    lines.append(
        f"KL(A ‖ B) is {summary.mean_kl:.4f} bits on average; they would say the same at "
        f"{same} of {summary.places} places ({summary.agreement:.1%})"
    )
    return lines
