"""What of a text is kept, what is taken along, and what is brought back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import browsers
import pytest
from write_room import brought, exported, judged, opened, record, rows, text, value, written

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_a_reload_keeps_the_tree_and_its_names(page: Page) -> None:
    written(page, "O Romeo")
    rows(page).first.focus()
    page.keyboard.press("F2")
    page.keyboard.type("mine")
    page.keyboard.press("Enter")
    before = value(page)
    page.reload()
    page.wait_for_selector(browsers.READY)
    assert value(page) == before
    page.get_by_role("treeitem", name="mine").wait_for()


def test_two_tabs_keep_a_text_each(page: Page) -> None:
    text(page).press_sequentially("first")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector(browsers.READY)
    text(other).fill("second")
    for one, expected in ((page, "first"), (other, "second")):
        one.reload()
        one.wait_for_selector(browsers.READY)
        assert value(one) == expected


def test_a_full_storage_is_said_and_breaks_nothing(open_page: Any) -> None:
    full = """Storage.prototype.setItem = () => {
      throw new DOMException("full", "QuotaExceededError");
    };"""
    page = open_page(script=full)
    text(page).press_sequentially("O Romeo")
    page.get_by_role("alert").filter(has_text="does not keep the text").wait_for()
    judged(page)
    assert value(page) == "O Romeo"


def test_a_saved_text_is_opened_as_it_was(page: Page, open_page: Any) -> None:
    written(page, "O Romeo")
    saved = exported(page)
    assert saved["format"] == "gpt2-page"
    assert saved["version"] == 1
    origins = [b["origin"] for b in saved["tree"]["branches"].values() if b["origin"]]
    assert len(origins) == 1
    assert isinstance(origins[0]["seed"], int)
    assert origins[0]["settings"]["max_tokens"] == 60
    assert origins[0]["facts"]["model"] == "bard"
    assert all(t["id"] >= 0 for b in saved["tree"]["branches"].values() for t in b["tokens"])
    other = open_page()
    opened(other, saved)
    assert value(other) == value(page)
    again = exported(other)
    assert (again["settings"], again["plan"]) == (saved["settings"], saved["plan"])
    for one in ("tokens", "name", "origin"):
        found, expected = ([b[one] for b in s["tree"]["branches"].values()] for s in (again, saved))
        assert found == expected


def test_a_link_carries_the_text_and_asks_before_it_takes_the_place_of_one(
    page: Page, open_page: Any
) -> None:
    whole = "O Romeo" + written(page, "O Romeo")
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="Copy a link").click()
    page.get_by_text("characters").wait_for()
    link = page.get_by_role("textbox", name="Link").input_value()
    path = link.split("/", 3)[3]
    other = open_page(path="/" + path)
    assert value(other) == whole
    assert "#" not in other.url
    text(other).fill("mine")
    other.evaluate("link => { location.hash = new URL(link).hash; }", link)
    other.get_by_role("button", name="Keep my text").click()
    assert value(other) == "mine"
    other.evaluate("link => { location.hash = new URL(link).hash; }", link)
    other.get_by_role("button", name="Open the link").click()
    assert value(other) == whole


def test_a_damaged_link_is_refused_in_a_sentence(open_page: Any) -> None:
    page = open_page(path="/#text=abc")
    page.get_by_role("alert").filter(has_text="the link is damaged").wait_for()
    assert value(page) == ""


WRONG: list[tuple[str, Any, str]] = [
    ("no JSON", "{", "the file is no JSON"),
    ("another format", {"format": "other"}, "no text of this page"),
    ("a newer version", {"format": "gpt2-page", "version": 2}, "version 2"),
    ("no parent", record({"tokens": [], "parent": "9"}), "not there"),
    ("two roots", record({"tokens": []}, {"tokens": []}), "one beginning"),
    (
        "a circle",
        record({"tokens": []}, {"tokens": [], "parent": "2"}, {"tokens": [], "parent": "1"}),
        "after themselves",
    ),
    ("a token without text", record({"tokens": [{"id": 1}]}), "without an id or a text"),
    ("a leaf that is not there", record({"tokens": []}, leaf="7"), "which branch is shown"),
    ("a wrong seed", record({"tokens": []}, seed="x"), "seed"),
]


@pytest.mark.parametrize(("content", "why"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_a_wrong_file_is_refused_in_a_sentence_and_changes_nothing(
    page: Page, content: Any, why: str
) -> None:
    text(page).fill("mine")
    brought(page, content)
    page.get_by_role("dialog").get_by_role("alert").filter(has_text=why).wait_for()
    assert value(page) == "mine"
