"""What patching restores as a page, whose colours need no script."""

from __future__ import annotations

import html
from collections.abc import Sequence

from gpt2cli.analysis.patching import Patching
from gpt2cli.arrays import NDArray
from gpt2cli.cli.io.terminal import visible
from gpt2cli.cli.render import pages
from gpt2cli.cli.render.patch_view import TITLES, difference, positions

_ABOUT = {
    "stream": "The residual stream, to which all layers add, is replaced as it goes into a "
    "layer (row) at a token (column): where the answer is, layer by layer.",
    "heads": "What one head (column) of a layer (row) mixes is replaced at all tokens: which heads "
    "move the answer.",
    "attention": "What the attention of a layer (row) adds at a token (column) is replaced.",
    "mlp": "What the MLP, the feed-forward, of a layer (row) adds at a token (column) is replaced.",
}


def render(model: str, prompts: Sequence[str], found: Patching) -> bytes:
    """The page; the prompts are escaped."""
    clean, corrupted = (html.escape(visible(prompt)) for prompt in prompts)
    body = f"""<p class="wide">The corrupted prompt is read again and again, each time with one
activation taken from the clean one. A cell says how much of the difference between the answers
that restores, in per cent: 100 is all of it, 0 nothing.</p>
<section class="wide" aria-labelledby="prompts">
<h2 id="prompts">Two prompts, two answers</h2>
<table><tr><th scope="row">clean</th><td>{clean}</td></tr>
<tr><th scope="row">corrupted</th><td>{corrupted}</td></tr></table>
<p>{html.escape(difference(found))}</p>
</section>
"""
    for name, title in TITLES.items():
        if (values := getattr(found, name)) is not None:
            heads = [f"head {i}" for i in range(values.shape[1])]
            body += _section(name, title, heads if name == "heads" else positions(found), values)
    about = f"{pages.excerpt(prompts[0], 40)} into {pages.excerpt(prompts[1], 40)}"
    return pages.document("patch", model, about, body, "")


def _section(name: str, title: str, columns: Sequence[str], values: NDArray) -> str:
    heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    rows = "".join(_row(i, columns, row) for i, row in enumerate(values.tolist()))
    return f"""<section class="wide" aria-labelledby="{name}">
<h2 id="{name}">{title}</h2>
<p>{_ABOUT[name]}</p>
<div class="scroll"><table class="patches" data-rove aria-label="{title}, in per cent">
<tr><th scope="col">layer</th>{heads}</tr>
{rows}</table></div>
</section>
"""


def _row(layer: int, columns: Sequence[str], values: Sequence[float]) -> str:
    cells = "".join(
        _cell(f"layer {layer}, {name}", value) for name, value in zip(columns, values, strict=True)
    )
    return f'<tr><th scope="row">{layer}</th>{cells}</tr>\n'


def _cell(place: str, value: float) -> str:
    tip = html.escape(f"{place}: {100 * value:.1f} % restored")
    kind = "heat cold" if value < 0 else "heat"
    strength = f"--heat:{min(abs(value), 1):.2f}"
    number = round(100 * value) + 0
    return f'<td class="{kind}" style="{strength}" tabindex="0" data-tip="{tip}">{number}</td>'
