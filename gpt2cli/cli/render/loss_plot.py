"""The loss of a run over its steps: a picture by matplotlib, or characters in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.render.drawing import COLD, HOT, draw, drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
_HEIGHT = 10  # lines


def picture(records: Sequence[Record], title: str, kind: str) -> bytes:
    """A PNG or SVG, by its name, of training and validation loss."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for key, label, colour in (("loss", "training", COLD), ("val_loss", "validation", HOT)):
            steps, values = _series(records, key)
            marker = "o" if key == "val_loss" else ""
            axes.plot(steps, values, color=colour, label=label, marker=marker, markersize=4)
        axes.set(title=drawable(title), xlabel="step", ylabel="loss in nats per token")
        axes.legend()

    return draw(paint, (8, 4.5), kind)


def lines(records: Sequence[Record], width: int) -> list[str]:
    """The same in characters: · is training, o validation."""
    curves = [("·", _series(records, "loss")), ("o", _series(records, "val_loss"))]
    steps = [step for _, (own, _) in curves for step in own]
    values = [value for _, (_, own) in curves for value in own]
    if not values:
        return []
    low, high = min(values), max(values)
    labels = [f"{high:.3f} ", f"{low:.3f} "]
    margin = max(map(len, labels))
    columns = max(10, width - margin - 1)
    grid = [[" "] * columns for _ in range(_HEIGHT)]
    for mark, (own_steps, own) in curves:
        for step, value in zip(own_steps, own, strict=True):
            x = round((step - min(steps)) / max(1, max(steps) - min(steps)) * (columns - 1))
            y = round((high - value) / max(1e-9, high - low) * (_HEIGHT - 1))
            grid[y][x] = mark
    left = [labels[0], *[""] * (_HEIGHT - 2), labels[1]]
    drawn = [f"{label:>{margin}}│{''.join(row)}" for label, row in zip(left, grid, strict=True)]
    axis = f"step {min(steps)}".ljust(columns - len(str(max(steps)))) + str(max(steps))
    return [line.rstrip() for line in drawn] + [" " * (margin + 1) + axis]


def _series(records: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    known = [(r["step"], r[key]) for r in records if r.get(key) is not None]
    return [step for step, _ in known], [value for _, value in known]
