"""An inspection as one interactive page that loads nothing: `page.html` with data in it."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any


def render(model: str, prompt: str, data: dict[str, Any]) -> str:
    """The page. Of attention, weights to three digits, and none for tokens yet to come."""
    attention = [
        [[[round(w, 3) for w in row[: t + 1]] for t, row in enumerate(head)] for head in layer]
        for layer in data["attention"]
    ]
    record = {"model": model, "prompt": prompt, **data, "attention": attention}
    # Escaped like this no text can end the element that it is in.
    text = json.dumps(record, ensure_ascii=False).replace("<", "\\u003c")
    template = files("gpt2cli.cli").joinpath("page.html").read_text(encoding="utf-8")
    head, _, rest = template.partition("@TITLE@")
    middle, _, tail = rest.partition("@DATA@")
    return head + html.escape(f"{model}: {prompt[:60]}") + middle + text + tail
