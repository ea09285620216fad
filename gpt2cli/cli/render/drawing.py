"""How all pictures are drawn: by matplotlib, in the colours of the pages, into bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.cli.io.terminal import escape, visible
from gpt2cli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
KINDS = (".png", ".svg")

# As on the pages.
PAPER, CARD, INK, FAINT, LINE = "#f8f6f1", "#ffffff", "#1c2430", "#5a6472", "#e3ded4"
HOT, COLD, THIRD = "#f5923e", "#86b6de", "#7a9a4d"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # which matplotlib brings, so that all pictures are alike
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a token begins no formula
    "figure.facecolor": PAPER,
    "axes.facecolor": CARD,
    "axes.edgecolor": LINE,
    "axes.labelcolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.edgecolor": LINE,
}


def check_picture(path: Path, option: str) -> None:
    """Raise `UsageError` for a file that is no picture by its name, or without matplotlib."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"{option} must end in .png or .svg, not {path.name}", option)
    check_matplotlib(option)


def check_matplotlib(option: str) -> None:
    """Raise `UsageError` without matplotlib."""
    if find_spec("matplotlib") is None:
        raise UsageError(
            f"{option} needs matplotlib; install it with: pip install 'gpt2cli[plot]'", option
        )


def draw(paint: Callable[[Figure], None], size: tuple[float, float], kind: str = "png") -> bytes:
    """A PNG or SVG, by its name, of a figure of so many inches that `paint` fills."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI)
    return buffer.getvalue()


def drawable(text: str) -> str:
    """Text in the font's characters; others are escaped, as \\u65e5."""
    return "".join(c if ord(c) in _characters() else escape(c) for c in visible(text))


@cache
def _characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(STYLE["font.family"])).get_charmap())


def finish(axes: Axes) -> None:
    """A grid to read values by, and a legend."""
    axes.grid(axis="y", color=LINE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
