"""What the page saves is written again by `gpt2 replay`, to the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def saved(page: Page) -> dict[str, Any]:
    """The text as the page saves it."""
    page.get_by_role("button", name="Share").click()
    with page.expect_download() as found:
        page.get_by_role("button", name="Save as JSON").click()
    page.get_by_role("button", name="Close").click()
    return dict(json.loads(Path(found.value.path()).read_bytes()))


def test_a_text_that_was_written_and_cut_comes_again_from_its_record(
    page: Page, run_process: Run
) -> None:
    text = page.get_by_role("textbox", name="Text", exact=True)
    text.press_sequentially("ROMEO:")
    for _ in range(2):
        page.get_by_role("button", name="Continue").click()
        page.get_by_role("status").filter(has_text="tokens written").wait_for()
        page.wait_for_timeout(100)
    # Typed within what was written: a branch that parts from it there.
    text.press("Control+End")
    for _ in range(9):
        text.press("ArrowLeft")
    text.press_sequentially(" and so")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("status").filter(has_text="tokens written").wait_for()
    record = saved(page)
    written = [b for b in record["tree"]["branches"].values() if b["origin"]]
    assert any(b["origin"].get("offset") for b in written)
    done = run_process("replay", "-", "--json", stdin=json.dumps(record).encode())
    found = json.loads(done.stdout)
    assert found["summary"]["same"] == found["summary"]["texts"] == len(written) >= 4
    tokens = [one["tokens"] for one in found["texts"]]
    assert tokens == [len(b["tokens"]) for b in written]
