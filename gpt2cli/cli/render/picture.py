"""An inspection as one picture, drawn by matplotlib: a panel per section, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm

from gpt2cli.cli.io.terminal import visible, visible_token
from gpt2cli.cli.render.charts import LISTED, after, label, neuron_shares, shares, title
from gpt2cli.cli.render.drawing import (
    CARD,
    COLD,
    FAINT,
    HOT,
    THIRD,
    draw,
    drawable,
    finish,
)
from gpt2cli.cli.render.pages import excerpt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gpt2cli.analysis.inspection import Inspection
    from gpt2cli.arrays import NDArray

WIDTH = 12.0  # inches
MARGIN = 0.4  # inches
HEADER = 0.7  # inches
LENS = 16  # tokens of the logit lens, as many as can be read

HEAT = LinearSegmentedColormap.from_list("heat", [CARD, HOT])


def render(
    model: str,
    prompt: str,
    data: Inspection,
    sections: Sequence[str],
    layers: Sequence[int],
    head: int | None,
    every: bool,
) -> bytes:
    """A PNG of the chosen sections; `every` shows all heads of `layers`."""
    heights = [_height(data, section, layers, every) for section in sections]
    height = sum(heights) + HEADER + 2 * MARGIN

    def paint(figure: Figure) -> None:
        left, bottom = MARGIN / WIDTH, MARGIN / height
        inner = (left, bottom, 1 - 2 * left, 1 - 2 * bottom - HEADER / height)
        figure.set_layout_engine("constrained", rect=inner, hspace=0.08, h_pad=0.12)
        beginning = excerpt(drawable(" ".join(visible(prompt[:400]).split())), 70)
        command = drawable(visible(f"gpt2 inspect · {model}"))[:120]
        figure.text(left, 1 - bottom, command, va="top", color=FAINT)
        figure.text(left, 1 - 1.5 * bottom, beginning, va="top", size=14, weight="bold")
        panels = figure.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
        for section, axes in zip(sections, panels, strict=True):
            axes.set_title(drawable(title(data, section)))
            if section == "attention" and every:
                _all_heads(axes, data, layers)
            elif section == "attention":
                _attention(axes, data, layers[0], head)
            else:
                _PANELS[section](axes, data)

    return draw(paint, (WIDTH, height))


def _height(data: Inspection, section: str, layers: Sequence[int], every: bool) -> float:
    """Inches that a section needs."""
    L, H, N = data.attention.shape[:3]
    if section == "attention":
        height = WIDTH * len(layers) / H + 1 if every else WIDTH * min(0.8, N / 40) + 1
        return float(max(3.5, height))
    bars = {"next": len(data.next), "contributions": LISTED, "neurons": LISTED, "embedding": 2}
    if section in bars:
        return 1.2 + 0.24 * bars[section]
    return float(1.6 + 0.3 * L) if section == "lens" else 3.4


def _label(text: str, width: int = 14) -> str:
    return label(drawable(visible_token(text.encode())), width)


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], shown: str) -> None:
    """Horizontal bars from the top down, each with its number at the end."""
    colours = [HOT if value > 0 else COLD for value in values]
    drawn = axes.barh(range(len(names)), values, color=colours, height=0.7)
    axes.bar_label(drawn, [format(value, shown) for value in values], padding=4, color=FAINT)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.08, y=0.02)
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xticks([])


def _next(axes: Axes, data: Inspection) -> None:
    names = [_label(choice.text) for choice in data.next]
    _bars(axes, names, [choice.probability for choice in data.next], ".2%")


def _lens(axes: Axes, data: Inspection) -> None:
    """Each layer's best guess after each token, as far as they can be read."""
    shown = slice(-min(len(data.texts), LENS), None)
    probabilities = data.lens.probabilities[:, shown, 0]
    axes.imshow(probabilities, cmap=HEAT, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(probabilities)), [after(i) for i in range(len(probabilities))])
    names = [_label(text, 9) for text in data.texts[shown]]
    axes.set_xticks(range(len(names)), names)
    axes.xaxis.tick_top()
    for layer, places in enumerate(data.lens.texts):
        for t, texts in enumerate(places[shown]):
            axes.text(t, layer, _label(texts[0], 9), ha="center", va="center", size=8)


def _contributions(axes: Axes, data: Inspection) -> None:
    parts = list(shares(data).items())[:LISTED]
    _bars(axes, [name for name, _ in parts], [value for _, value in parts], "+.3f")


def _embedding(axes: Axes, data: Inspection) -> None:
    _bars(axes, ["token", "position"], [data.embedding.token, data.embedding.position], ".3f")


def _neurons(axes: Axes, data: Inspection) -> None:
    """Of the strongest neurons those that add most."""
    adds = neuron_shares(data)
    most = np.argsort(-np.abs(adds), axis=None)[:LISTED]
    places = [tuple(map(int, np.unravel_index(i, adds.shape))) for i in most]
    names = [f"layer {place[0]}, {int(data.neurons.index[place]):,}" for place in places]
    _bars(axes, names, [float(adds[place]) for place in places], "+.3f")


def _activations(axes: Axes, data: Inspection) -> None:
    a, layers = data.activations, range(len(data.activations.stream))
    axes.plot(layers, a.stream[:, -1], "o-", color=HOT, label="stream")
    axes.plot(layers[1:], a.attention[:, -1], "s-", color=COLD, label="attention added")
    axes.plot(layers[1:], a.feed_forward[:, -1], "^-", color=THIRD, label="feed-forward added")
    axes.set_xticks(layers, [after(i).removeprefix("layer ") for i in layers])
    axes.set_xlabel("after layer")
    finish(axes)


def _norms(axes: Axes, data: Inspection) -> None:
    for stage, colour in (("in", HOT), ("normalised", COLD), ("out", THIRD)):
        variance = getattr(data.norms, f"variance_{stage}")[:, -1]
        axes.plot(range(len(variance)), variance, "o-", color=colour, label=f"variance {stage}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("norm, from the first to the final one")
    finish(axes)


def _attention(axes: Axes, data: Inspection, layer: int, head: int | None) -> None:
    weights = data.attention[layer].mean(0) if head is None else data.attention[layer, head]
    axes.imshow(_seen(weights), cmap=HEAT, norm=PowerNorm(0.5, 0, 1))
    axes.set_anchor("NW")
    names = [_label(text) for text in data.texts]
    axes.set_xticks(range(len(names)), names, rotation=90, size=8)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.set_xlabel(f"layer {layer}, {'the mean of its heads' if head is None else f'head {head}'}")


def _all_heads(axes: Axes, data: Inspection, layers: Sequence[int]) -> None:
    """Layers are rows, heads are columns, with a gap between one map and the next."""
    gap = 1 + len(data.texts) // 10
    maps = np.array([[_seen(head) for head in data.attention[layer]] for layer in layers])
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, N, _ = padded.shape
    image = padded.swapaxes(1, 2).reshape(rows * N, columns * N)[:-gap, :-gap]
    axes.imshow(image, cmap=HEAT, norm=PowerNorm(0.5, 0, 1))
    axes.set_anchor("NW")
    middle = (N - gap - 1) / 2
    axes.set_xticks([N * i + middle for i in range(columns)], [f"head {i}" for i in range(columns)])
    axes.set_yticks([N * i + middle for i in range(rows)], [f"layer {i}" for i in layers])
    axes.xaxis.tick_top()


def _seen(weights: NDArray) -> NDArray:
    """Mask the part above the diagonal, where attention is zero by causality."""
    return np.where(np.tri(len(weights), dtype=bool), weights, np.nan)


_PANELS = {
    "next": _next,
    "lens": _lens,
    "contributions": _contributions,
    "activations": _activations,
    "norms": _norms,
    "embedding": _embedding,
    "neurons": _neurons,
}
