"""What tests do in the room to write in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SETTINGS: dict[str, Any] = {
    "n": 1,
    "max_tokens": 8,
    "seed": 1,
    "stop": [],
    "sampling": {"temperature": 0.8},
    "constraint": None,
}
PLAN: dict[str, Any] = {"ablate": [], "ablate_with": "zero", "reference": None, "steer": []}


def record(*branches: dict[str, Any], leaf: str = "0", **settings: Any) -> dict[str, Any]:
    """A page's text, whose branches are named "0", "1", …; ids -1 are text that is read again."""
    usual = {"parent": None, "name": "", "origin": None}
    found = {str(i): usual | branch for i, branch in enumerate(branches)}
    return {
        "format": "gpt2-page",
        "version": 1,
        "model": {},
        "tree": {"branches": found, "leaf": leaf},
        "settings": SETTINGS | settings,
        "plan": PLAN,
    }


def words(*texts: str) -> list[dict[str, Any]]:
    """Tokens that are still to be read."""
    return [{"id": -1, "text": text} for text in texts]


def brought(page: Page, text: Any) -> None:
    """Open a file."""
    page.get_by_role("button", name="Share").click()
    content = text if isinstance(text, str) else json.dumps(text)
    page.get_by_label("A JSON file").set_input_files(
        {"name": "text.json", "mimeType": "application/json", "buffer": content.encode()}
    )


def opened(page: Page, content: dict[str, Any]) -> None:
    """Open a file that is right."""
    brought(page, content)
    page.get_by_role("status").filter(has_text="The file is opened").wait_for()


def text(page: Page) -> Locator:
    """The editor."""
    return page.get_by_role("textbox", name="Text", exact=True)


def value(page: Page) -> str:
    """What the editor shows."""
    return text(page).input_value()


def tokens(page: Page) -> list[str]:
    """Its tokens, as far as the page has read them."""
    return page.locator(".backdrop span").all_text_contents()


def judged(page: Page) -> None:
    """Wait until the model has said something of every token but the first."""
    page.wait_for_timeout(50)
    page.locator(".backdrop span.open").first.wait_for(state="detached")
    page.get_by_text("perplexity").first.wait_for()


def written(page: Page, start: str) -> str:
    """Type a beginning, let the model continue it, and return what it added."""
    text(page).press_sequentially(start)
    return continued(page)


def continued(page: Page) -> str:
    """Let the model continue the text, and return what it added."""
    before = value(page)
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("status").filter(has_text="tokens written").wait_for()
    after = value(page)
    assert after.startswith(before)
    assert len(after) > len(before)
    return after[len(before) :]


def rows(page: Page) -> Locator:
    """The branches."""
    return page.get_by_role("treeitem")


def saved_text(page: Page) -> str:
    """What is saved as text."""
    page.get_by_role("button", name="Share").click()
    with page.expect_download() as found:
        page.get_by_role("button", name="Save as text").click()
    page.get_by_role("button", name="Close").click()
    return Path(found.value.path()).read_bytes().decode()


def exported(page: Page) -> dict[str, Any]:
    """What is saved as JSON."""
    page.get_by_role("button", name="Share").click()
    with page.expect_download() as found:
        page.get_by_role("button", name="Save as JSON").click()
    page.get_by_role("button", name="Close").click()
    return dict(json.loads(Path(found.value.path()).read_bytes()))
