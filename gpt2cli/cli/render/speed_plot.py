"""The speeds that `gpt2 bench` measured, as a picture: by context, and by number of sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.render.drawing import COLD, FAINT, HOT, draw, drawable, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Facts = Mapping[str, Any]
_PANEL = (6.0, 4.0)  # inches


def picture(facts: Facts, kind: str) -> bytes:
    """A PNG or SVG, by its name, of the object that `--json` shows."""
    contexts, sequences = facts["contexts"], facts["sequences"]
    panels = 2 if sequences else 1

    def paint(figure: Figure) -> None:
        first, *others = figure.subplots(1, panels, squeeze=False)[0]
        title = f"gpt2 bench · {facts['model']} in {facts['precision']}"
        figure.suptitle(drawable(title), x=0.01, ha="left")
        _by(first, contexts, "context", "tokens of context")
        for axes in others:
            _by(axes, sequences, "sequences", "sequences at once")

    return draw(paint, (panels * _PANEL[0], _PANEL[1]), kind)


def _by(axes: Axes, results: Sequence[Facts], key: str, label: str) -> None:
    """Decoding as medians between its extremes, and the limit, where memory is one."""
    places = [result[key] for result in results]
    speeds = [result["decode_tokens_per_second"] for result in results]
    middle = [speed["median"] for speed in speeds]
    below = [speed["median"] - speed["lowest"] for speed in speeds]
    above = [speed["highest"] - speed["median"] for speed in speeds]
    axes.errorbar(places, middle, (below, above), color=HOT, label="decoding", fmt="o-", capsize=3)
    limited = [
        (result[key], result["limit_tokens_per_second"])
        for result in results
        if result["share_of_limit"] is not None
    ]
    if limited:
        axes.plot(*zip(*limited, strict=True), "--", color=FAINT, label="the memory's limit")
    if key == "context":
        read = [result["prefill_tokens_per_second"]["median"] for result in results]
        axes.plot(places, read, "s-", color=COLD, label="reading the prompt")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.15 * max(middle))
    axes.set_xticks(places, [f"{place:,}" for place in places], minor=False)
    axes.set(xlabel=label, ylabel="tokens/s")
    finish(axes)
