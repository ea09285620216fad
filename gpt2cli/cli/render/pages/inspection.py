"""An inspection as a page that answers the pointer and the keyboard."""

from __future__ import annotations

import json
from typing import Any

from gpt2cli.cli.io.terminal import visible, visible_token
from gpt2cli.cli.render import pages
from gpt2cli.errors import not_numbers


def render(model: str, prompt: str, data: dict[str, Any]) -> bytes:
    """The page. Of attention, weights to three digits, and none for tokens yet to come.

    Raises `WeightsError` for numbers that are not finite, which JSON cannot hold.
    """
    tokens = [
        {"label": _label(token["text"]), "text": visible(token["text"]).replace("\n", "↵\n")}
        for token in data["tokens"]
    ]
    choices = data["next"] if data["target"] in data["next"] else [*data["next"], data["target"]]
    attention = [
        [[[round(w, 3) for w in row[: t + 1]] for t, row in enumerate(head)] for head in layer]
        for layer in data["attention"]
    ]
    lens = {name: value for name, value in data["lens"].items() if name not in ("ids", "texts")}
    lens["labels"] = [[list(map(_label, at)) for at in layer] for layer in data["lens"]["texts"]]
    record = data | {
        "tokens": tokens,
        "target": _choice(data["target"]),
        "next": list(map(_choice, choices)),
        "lens": lens,
        "attention": attention,
    }
    if "effect" in data:
        moved = [{**one, "label": _label(one["text"])} for one in data["effect"]["tokens"]]
        record["effect"] = {"tokens": moved}
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise not_numbers(model, data["first"] + len(tokens)) from None
    # Escaped like this no text can end the element that it is in.
    text = text.replace("<", "\\u003c")
    body = f'{pages.part("inspection.html")}<script type="application/json" id="data">{text}'
    body += "</script>\n"
    about = pages.excerpt(prompt)
    return pages.document("inspect", model, about, body, pages.part("inspection.js"))


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "label": _label(choice["text"]),
        "logit": choice["logit"],
        "probability": choice["probability"],
    }


def _label(text: str) -> str:
    return visible_token(text.encode("utf-8"))
