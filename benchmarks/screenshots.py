"""Take the pictures of the page that the documents show.

    python benchmarks/screenshots.py [--model bard] [--to docs/pictures]

Needs Chromium, Playwright (`pip install -e '.[dev]'`) and Pillow. A picture has few colours, so
that 128 of them, chosen for it, are enough; one over 120 kB is refused.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

import browsers  # noqa: E402
import servers  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

TEXT = "O Romeo, Romeo! wherefore art thou"
MOST_BYTES, COLOURS = 120_000, 128
# Each width shows another room, as wide windows suit it: width, height, room, colours.
VIEWS = [
    (360, 760, "What if", "light"),
    (768, 760, "Look inside", "dark"),
    (1440, 900, "Write", "light"),
]


def prepare(page: Page, room: str) -> None:
    """Write a text with a branch, and open a room."""
    page.get_by_role("textbox", name="Text", exact=True).fill(TEXT)
    browsers.settled(page)
    if room == "Write":
        page.get_by_label("Seed", exact=True).fill("4")
        page.get_by_label("Continuations, number", exact=True).fill("3")
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("status").filter(has_text="tokens written").wait_for()
    page.locator("#rooms").get_by_role("tab", name=room).click()
    browsers.settled(page)
    if room == "What if":
        page.locator(".board [data-part='2.3']").click()
        browsers.settled(page)


def save(picture: bytes, path: Path) -> None:
    """Write a picture with few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    small = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    small.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {image.width} × {image.height}, {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"{path} is larger than {MOST_BYTES:,} bytes")


def main() -> None:
    """Start a server and a browser, and take all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bard")
    parser.add_argument("--to", type=Path, default=REPOSITORY / "docs" / "pictures")
    chosen = parser.parse_args()
    watched = browsers.Watched()
    with servers.command("-m", chosen.model) as server, browsers.launched() as browser:
        url = f"http://127.0.0.1:{server.port}/"
        for width, height, room, scheme in VIEWS:
            page = browsers.opened(browser, url, watched, size=(width, height), color_scheme=scheme)
            prepare(page, room)
            save(page.screenshot(), chosen.to / f"page-{width}.png")
            page.context.close()
    if watched.faults:
        sys.exit("\n".join(watched.faults))


if __name__ == "__main__":
    main()
