"""Pages of HTML that load nothing: each is one file with one style, and holds its own data.

Text on a page is filtered as on a terminal: control characters and direction overrides are made
visible.
"""

from __future__ import annotations

import base64
import hashlib
import html
from importlib.resources import files

from gpt2cli.cli.io.terminal import visible


def document(command: str, model: str, about: str, body: str, script: str) -> bytes:
    """A page about a text or texts, read by a model. `body` is HTML; all else is text.

    No script runs but the page's own, should some text ever be taken for one.
    """
    model, about = html.escape(visible(model)), html.escape(about)
    script = part("tips.js") + script
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<title>{model}: {about}</title>
<style>
{part("style.css")}</style>
<header>
<p>gpt2 {command} · {model}</p>
<h1>{about}</h1>
</header>
<main>
{body}</main>
<script>{script}</script>
</html>
""".encode("utf-8", "replace")  # a file's name may hold what is no character


def part(name: str) -> str:
    """The text of a file in this directory."""
    return files("gpt2cli.cli.render.pages").joinpath(name).read_text(encoding="utf-8")


def excerpt(text: str, length: int = 80) -> str:
    """How a text begins, on one line, in quotation marks."""
    line = " ".join(visible(text[: 4 * length]).split())
    if len(line) <= length and len(text) <= 4 * length:
        return f"“{line}”"
    return f"“{line[:length].rpartition(' ')[0] or line[:length]} …”"
