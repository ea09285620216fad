"""Tables, bars and heat maps of an `Inspection`, for a terminal or a pipe alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.bar import Bar
from rich.cells import cell_len, set_cell_size
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from gpt2cli.analysis.effects import Effect
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.arrays import NDArray
from gpt2cli.cli.io.terminal import visible_token
from gpt2cli.cli.render.tables import new_table

LISTED = 12  # contributions that are named one by one
WIDE = 80  # columns that have room for whole labels beside a large map
SMALL_CELLS = 24  # tokens of a small one
_MOMENTS = ("mean", "variance")
SHADES = " ░▒▓█"
COLOURS = ("", "blue", "cyan", "yellow", "red")


def label(text: str, width: int = 14) -> str:
    """A token on one line, truncated if necessary."""
    marked = visible_token(text.encode("utf-8"))
    return marked if cell_len(marked) <= width else set_cell_size(marked, width - 1) + "…"


def percent(p: float) -> str:
    """A probability with two significant digits, however small."""
    return f"{p:.2%}" if p >= 0.001 or p == 0 else f"{100 * p:.2g}%"


def charts(
    data: Inspection, sections: Sequence[str], layers: Sequence[int], head: int | None, every: bool
) -> Iterator[Any]:
    """What Rich can print, section by section; `every` shows all heads of `layers`, small."""
    for section in sections:
        yield Text(title(data, section), style="bold")
        if section == "next":
            yield _next(data) if data.effect is None else _moved(data.effect)
        elif section == "lens":
            yield _lens(data)
        elif section == "contributions":
            yield _contributions(data)
        elif section == "activations":
            yield _activations(data)
        elif section == "norms":
            yield _norms(data)
        elif section == "embedding":
            yield _embedding(data)
        elif section == "neurons":
            yield _neurons(data)
        else:
            yield Text("░ from 3 %, ▒ from 12 %, ▓ from 25 %, █ from 50 %", style="dim")
            for layer in layers:
                yield _all_heads(data, layer) if every else _Map(data, layer, head)
        yield ""


def title(data: Inspection, section: str) -> str:
    """What a section shows, in a line."""
    last, target = label(data.texts[-1]), label(data.target.text)
    logit = f"logit of {target}, {data.target.logit:.3f}"
    if data.versus is not None:
        other = data.versus.target
        difference = data.target.logit - other.logit
        logit = f"logit of {target} less that of {label(other.text)}, {difference:.3f}"
    changed = f" before and after, {data.effect.kl:.3f} bits apart" if data.effect else ""
    return {
        "next": f"After {last}: the most probable tokens{changed}",
        "lens": f"Logit lens after {last}: what each layer would say, were it the last",
        "contributions": f"What makes the {logit} (head 3.0 is head 0 of layer 3)",
        "activations": f"Lengths of the vectors at {last}: the stream, and what is added to it",
        "embedding": f"Lengths of the embeddings of {last}, whose sum goes into layer 0",
        "neurons": f"The strongest neurons at {last}, and what each adds to the {logit}",
        "norms": f"Layer norms at {last}: mean and variance",
        "attention": "Attention: how much each token (row) takes from those before it (columns)",
    }[section]


def _next(data: Inspection) -> Table:
    table = new_table("token", "", "probability", "logit", text=2)
    choices = data.next if data.target in data.next else [*data.next, data.target]
    top = choices[0].probability
    for choice in choices:
        bar = Bar(top, 0, choice.probability, color="green")
        table.add_row(label(choice.text), bar, percent(choice.probability), f"{choice.logit:.3f}")
    return table


def _moved(effect: Effect) -> Table:
    """Tokens before and after interventions; the bar is the probability after."""
    table = new_table("token", "", "before", "after", "logit before", "logit after", text=2)
    top = max(moved.after.probability for moved in effect.tokens)
    for moved in effect.tokens:
        stands = moved.before, moved.after
        table.add_row(
            label(moved.text),
            Bar(top, 0, moved.after.probability, color="green"),
            *(percent(standing.probability) for standing in stands),
            *(f"{standing.logit:.3f}" for standing in stands),
        )
    return table


def _lens(data: Inspection) -> Table:
    lens, target = data.lens, label(data.target.text)
    table = new_table("after", "best", "second", "third", f"{target} itself", "rank", text=4)
    for layer, texts in enumerate(lens.texts):
        best = zip(texts[-1], lens.probabilities[layer, -1].tolist(), strict=True)
        table.add_row(
            after(layer),
            *(f"{label(text)} {percent(p)}" for text, p in best),
            percent(float(lens.target_probability[layer])),
            f"{lens.target_rank[layer]:,}",
        )
    return table


def after(layer: int) -> str:
    """The name of a row of the lens: 0 is the embeddings, then the layers."""
    return f"layer {layer - 1}" if layer else "embeddings"


def _contributions(data: Inspection) -> Table:
    table = new_table("part", "", "adds", text=2)
    parts = list(shares(data).items())
    most = max(abs(value) for _, value in parts)
    for name, value in parts[:LISTED]:
        low, high = sorted((most, most + value))
        bar = Bar(2 * most, low, high, color="green" if value > 0 else "red")
        table.add_row(name, bar, f"{value:+.3f}")
    if rest := parts[LISTED:]:
        table.add_row(f"{len(rest)} smaller parts", "", f"{sum(v for _, v in rest):+.3f}")
    together = "the logit" if data.versus is None else "the difference"
    table.add_row(f"together, {together}", "", f"{sum(value for _, value in parts):+.3f}")
    return table


def shares(data: Inspection) -> dict[str, float]:
    """What each part adds to the logit, or to the difference of both; the largest first."""
    parts = data.contributions.parts()
    if data.versus is None:
        return parts
    others = data.versus.contributions.parts()
    less = {name: parts.get(name, 0.0) - others.get(name, 0.0) for name in parts | others}
    return dict(sorted(less.items(), key=lambda part: -abs(part[1])))


def neuron_shares(data: Inspection) -> NDArray:
    """The same of the strongest neurons. (L, K)"""
    adds = data.neurons.logit
    return adds if data.versus is None else adds - data.versus.neurons


def _embedding(data: Inspection) -> Table:
    table = new_table("embedding", "length", text=1)
    table.add_row("token", f"{data.embedding.token:,.3f}")
    table.add_row(f"position {data.first + len(data.ids) - 1}", f"{data.embedding.position:,.3f}")
    return table


def _neurons(data: Inspection) -> Table:
    """Each as its number, its activation after the GELU, and what it adds."""
    adds = neuron_shares(data)
    table = new_table("layer", "neuron", "activation", "", "adds", text=2)
    most = float(np.abs(adds).max()) or 1.0
    for layer, (indices, activations) in enumerate(
        zip(data.neurons.index.tolist(), data.neurons.activation.tolist(), strict=True)
    ):
        for index, activation, value in zip(
            indices, activations, adds[layer].tolist(), strict=True
        ):
            low, high = sorted((most, most + value))
            bar = Bar(2 * most, low, high, color="green" if value > 0 else "red")
            table.add_row(str(layer), f"{index:,}", f"{activation:.3f}", bar, f"{value:+.3f}")
    return table


def _activations(data: Inspection) -> Table:
    table = new_table("after", "", "stream", "attention\nadded", "feed-forward\nadded", text=2)
    stream = data.activations.stream[:, -1]
    for layer, length in enumerate(stream.tolist()):
        added = (data.activations.attention, data.activations.feed_forward)
        table.add_row(
            after(layer),
            Bar(float(stream.max()), 0, length, color="cyan"),
            f"{length:,.2f}",
            *(f"{a[layer - 1, -1]:,.2f}" if layer else "" for a in added),
        )
    return table


def _norms(data: Inspection) -> Table:
    fields = [f"{what}_{stage}" for stage in ("in", "normalised", "out") for what in _MOMENTS]
    table = new_table("norm before", *(field.replace("_", "\n") for field in fields))
    columns = [getattr(data.norms, field)[:, -1].tolist() for field in fields]
    halves = len(columns[0]) - 1
    for i, row in enumerate(zip(*columns, strict=True)):
        half = f"{'feed-forward' if i % 2 else 'attention'} {i // 2}"
        # + 0.0 makes a zero of what rounds to minus zero.
        table.add_row(
            half if i < halves else "the head", *(f"{round(x, 4) + 0.0:,.4f}" for x in row)
        )
    return table


@dataclass(frozen=True, slots=True)
class _Map:
    """One head, or the mean of all of a layer: as many tokens as the terminal is wide.

    Each row ends with the token that it takes most from.
    """

    data: Inspection
    layer: int
    head: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        data, which = (
            self.data,
            slice(None) if self.head is None else slice(self.head, self.head + 1),
        )
        room = 14 if options.max_width >= WIDE else 5
        left, right = room + 6, room + 10
        weights, before = _newest(
            data.attention[self.layer, which].mean(0),
            data.attention_before[self.layer, which].mean(0),
            max(4, (options.max_width - left - right) // 2),
        )
        N, T = len(weights), data.first + len(data.texts)
        first, names = T - N, [label(text, room) for text in data.texts[-N:]]
        title = f"layer {self.layer}, "
        title += "the mean of its heads" if self.head is None else f"head {self.head}"
        if first:
            title += f"; the last {N} of {T} tokens, … is all before them"
        yield Text(title)
        numbers = "".join(f"{i:<10}" for i in range(first, T) if (i - first) % 5 == 0)
        yield Text(" " * left + ("… " if first else "") + numbers, style="dim", no_wrap=True)
        for t, row in enumerate(weights):
            line = Text(f"{first + t:>4} {set_cell_size(names[t], left - 5)}", no_wrap=True)
            line.append(_cells(([before[t]] if first else []) + row[: t + 1].tolist(), 2))
            line.append("  " * (N - 1 - t))
            best = int(row.argmax())
            line.append(f"  {row[best]:.2f} {names[best]}", style="dim")
            yield line


def _all_heads(data: Inspection, layer: int) -> Group:
    """Every head of a layer, one character per token."""
    maps = []
    for head, (weights, before) in enumerate(
        zip(data.attention[layer], data.attention_before[layer], strict=True)
    ):
        small, _ = _newest(weights, before, SMALL_CELLS)
        lines = [Text(f"head {layer}.{head}".ljust(len(small)))]
        lines += [_cells(row[: t + 1].tolist(), 1) for t, row in enumerate(small)]
        maps.append(Group(*lines))
    return Group(Columns(maps, padding=(1, 3)))


def _newest(weights: NDArray, before: NDArray, cells: int) -> tuple[NDArray, NDArray]:
    """The corner of a map that fits; attention to tokens outside it is summed."""
    hidden = max(0, len(weights) - cells)
    return weights[hidden:, hidden:], before[hidden:] + weights[hidden:, :hidden].sum(-1)


def _cells(weights: Sequence[float], width: int) -> Text:
    """A shade per weight; the lowest shown is 1/32, because rows of many tokens are flat."""
    text = Text()
    for weight in weights:
        level = sum(weight >= bound for bound in (1 / 32, 1 / 8, 1 / 4, 1 / 2))
        text.append(SHADES[level] * width, style=COLOURS[level])
    return text
