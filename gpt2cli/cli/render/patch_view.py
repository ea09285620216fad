"""What patching restores, for a terminal or a pipe alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpt2cli.analysis.patching import Patching
from gpt2cli.cli.render.charts import label
from gpt2cli.cli.render.grids import Grid

TITLES = {
    "stream": "Restored by the stream into a layer",
    "heads": "Restored by a head, at all positions",
    "attention": "Restored by what attention adds",
    "mlp": "Restored by what the MLP adds",
}


def positions(found: Patching) -> list[str]:
    """A name for each: the token, or both where the prompts differ."""
    names = []
    for t, (clean, corrupted) in enumerate(zip(found.clean, found.corrupted, strict=True)):
        name = label(clean.text)
        names.append(f"{t} {name}" + ("" if clean == corrupted else f" / {label(corrupted.text)}"))
    return names


def difference(found: Patching) -> str:
    """What there is to restore, in a sentence."""
    answers = found.answers
    return (
        f"The logit of {label(answers.answer.text)} less that of {label(answers.versus.text)} is "
        f"{answers.clean:.3f} after the clean prompt, {answers.corrupted:.3f} after the corrupted."
    )


def tables(found: Patching) -> Iterator[Any]:
    """A grid per map; positions begin where the prompts differ."""
    yield difference(found)
    pairs = zip(found.clean, found.corrupted, strict=True)
    first = next(t for t, (clean, corrupted) in enumerate(pairs) if clean != corrupted)
    for name, title in TITLES.items():
        if (values := getattr(found, name)) is None:
            continue
        yield ""
        layers, columns = ([str(i) for i in range(n)] for n in values.shape)
        if name == "heads":
            yield Grid(f"{title} (rows: layers, columns: heads)", layers, columns, values)
        else:
            rows = positions(found)[first:]
            yield Grid(f"{title} (columns: layers)", rows, layers, values.T[first:])
