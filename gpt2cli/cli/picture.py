"""An inspection as one picture, drawn by matplotlib: a panel a section, one below the other."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gpt2cli.cli.charts import LISTED, after, label, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gpt2cli.arrays import NDArray
    from gpt2cli.inspection import Inspection

WIDTH = 12  # inches


def render(
    data: Inspection, sections: Sequence[str], layers: Sequence[int], head: int | None, every: bool
) -> bytes:
    """A PNG of the chosen sections; `every` shows all heads of `layers`."""
    heights = [_height(data, section, layers, every) for section in sections]
    # A dollar sign in a token begins no formula.
    with rc_context({"text.parse_math": False, "font.size": 9}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a script that the font lacks shows as boxes
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        panels = figure.subplots(len(sections), 1, height_ratios=heights, squeeze=False)[:, 0]
        for section, axes in zip(sections, panels, strict=True):
            axes.set_title(title(data, section), loc="left", fontsize=11)
            if section == "attention" and every:
                _all_heads(axes, data, layers)
            elif section == "attention":
                _attention(axes, data, layers[0], head)
            else:
                _PANELS[section](axes, data)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _height(data: Inspection, section: str, layers: Sequence[int], every: bool) -> float:
    """Inches that a section needs."""
    L, H, N = data.attention.shape[:3]
    if section == "attention":
        height = WIDTH * len(layers) / H + 1 if every else WIDTH * min(0.8, N / 50)
        return float(max(3.0, height))
    return float(1.5 + 0.25 * L) if section == "lens" else 3.0


def _next(axes: Axes, data: Inspection) -> None:
    names = [label(choice.text) for choice in data.next]
    axes.barh(range(len(names)), [choice.probability for choice in data.next], color="C1")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("probability")


def _lens(axes: Axes, data: Inspection) -> None:
    """Each layer's best guess after each token, as far as they can be read."""
    shown = slice(-min(len(data.texts), 24), None)
    probabilities = data.lens.probabilities[:, shown, 0]
    axes.imshow(probabilities, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
    axes.set_yticks(range(len(probabilities)), [after(i) for i in range(len(probabilities))])
    names = [label(text, 9) for text in data.texts[shown]]
    axes.set_xticks(range(len(names)), names, rotation=45)
    for layer, places in enumerate(data.lens.texts):
        for t, texts in enumerate(places[shown]):
            axes.text(t, layer, label(texts[0], 7), ha="center", va="center", fontsize=6)


def _contributions(axes: Axes, data: Inspection) -> None:
    parts = list(data.contributions.parts().items())[:LISTED]
    values = [value for _, value in parts]
    axes.barh(range(len(parts)), values, color=["C1" if value > 0 else "C0" for value in values])
    axes.set_yticks(range(len(parts)), [name for name, _ in parts])
    axes.invert_yaxis()
    axes.set_xlabel(f"the {len(parts)} largest parts")


def _activations(axes: Axes, data: Inspection) -> None:
    a, layers = data.activations, range(len(data.activations.stream))
    axes.plot(layers, a.stream[:, -1], "o-", label="stream")
    axes.plot(layers[1:], a.attention[:, -1], "s-", label="attention added")
    axes.plot(layers[1:], a.feed_forward[:, -1], "^-", label="feed-forward added")
    axes.set_xticks(layers, [after(i) for i in layers], rotation=45)
    axes.legend()


def _norms(axes: Axes, data: Inspection) -> None:
    for stage in ("in", "normalised", "out"):
        variance = getattr(data.norms, f"variance_{stage}")[:, -1]
        axes.plot(range(len(variance)), variance, "o-", label=f"variance {stage}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("norm, from the first to the final one")
    axes.legend()


def _attention(axes: Axes, data: Inspection, layer: int, head: int | None) -> None:
    weights = data.attention[layer].mean(0) if head is None else data.attention[layer, head]
    axes.imshow(_seen(weights), cmap="Oranges", norm=PowerNorm(0.5, 0, 1))
    names = [label(text) for text in data.texts]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(f"layer {layer}, {'the mean of its heads' if head is None else f'head {head}'}")


def _all_heads(axes: Axes, data: Inspection, layers: Sequence[int]) -> None:
    """Layers are rows, heads are columns, with a gap between one map and the next."""
    gap = 1 + len(data.texts) // 10
    maps = np.array([[_seen(head) for head in data.attention[layer]] for layer in layers])
    padded = np.pad(maps, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, N, _ = padded.shape
    image = padded.swapaxes(1, 2).reshape(rows * N, columns * N)
    axes.imshow(image, cmap="Oranges", norm=PowerNorm(0.5, 0, 1))
    middle = (N - gap) / 2
    axes.set_xticks([N * i + middle for i in range(columns)], [f"head {i}" for i in range(columns)])
    axes.set_yticks([N * i + middle for i in range(rows)], [f"layer {i}" for i in layers])


def _seen(weights: NDArray) -> NDArray:
    """Nothing above the diagonal, where no token looks."""
    return np.where(np.tri(len(weights), dtype=bool), weights, np.nan)


_PANELS = {
    "next": _next,
    "lens": _lens,
    "contributions": _contributions,
    "activations": _activations,
    "norms": _norms,
}
