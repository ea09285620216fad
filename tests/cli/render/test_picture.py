"""Charts as a picture."""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import pytest
from helpers import PROMPT

from gpt2cli.analysis import inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.cli.commands.inspect import SECTIONS
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer


def picture(data: Inspection, *sections: str, prompt: str = PROMPT, **options: Any) -> bytes:
    pytest.importorskip("matplotlib")
    from gpt2cli.cli.render.picture import render

    settings = {"layers": [1], "head": None, "every": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that a font lacks, for example
        return render("<tiny>", prompt, data, sections, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("every", [False, True])
def test_a_picture_of_all_sections_has_margins(tiny_inspection: Inspection, every: bool) -> None:
    png = picture(tiny_inspection, *SECTIONS, layers=[0, 1] if every else [1], every=every)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width == 12 * 120
    assert height > 1500
    assert png == picture(tiny_inspection, *SECTIONS, layers=[0, 1] if every else [1], every=every)
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(png))
    pixels[40:-40, 40:-40] = pixels[0, 0]
    assert (pixels == pixels[0, 0]).all()


def test_a_picture_holds_any_token(tiny_model: GPT2, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("$\\frac{$ $x^$ a b c d e f g")
    data = inspection.inspect(tiny_model, tiny_tokenizer, ids)
    strange = ["$\\frac{$", "日本語" * 9, "😀🏳️‍🌈", "x" * 300, "\u202e\x1b[31m", "\x00\x9b\u2066"]
    data.texts[: len(strange)] = strange
    data.lens.texts[0][-1][0] = "漢" * 40
    prompt = " ".join(strange)
    assert picture(data, "next", "lens", "attention", prompt=prompt, head=1).startswith(b"\x89PNG")


def test_a_picture_escapes_what_its_font_lacks() -> None:
    pytest.importorskip("matplotlib")
    from gpt2cli.cli.render import picture

    assert picture._label("a日", 20) == "a\\u65e5"
    assert picture._label("日" * 9) == "\\u65e5\\u65e5\\…"
    assert picture._label(" ↵\u202e", 20) == "·↵\\u202e"
