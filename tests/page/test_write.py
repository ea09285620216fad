"""The room to write in: text, tokens, branches."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import servers
from browsers import Watched
from write_room import (
    continued,
    judged,
    opened,
    record,
    rows,
    saved_text,
    text,
    tokens,
    value,
    words,
    written,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_what_is_typed_is_read_as_the_models_tokens_and_judged(page: Page) -> None:
    text(page).press_sequentially("O Romeo")
    judged(page)
    assert tokens(page) == ["O", " R", "ome", "o"]
    levels = page.locator(".backdrop span").evaluate_all("all => all.map((one) => one.className)")
    assert levels == ["", "s3 r3", "s1 r1", "s0 r0"]  # 10.4, 3.7 and 0.3 bits; ranks 112, 2, 1
    page.get_by_text("4 of 512 tokens").wait_for()


def test_typing_on_joins_the_letters_of_a_word_and_keeps_what_was_judged(page: Page) -> None:
    text(page).press_sequentially("O Rom")
    judged(page)
    page.locator(".backdrop span").first.evaluate("one => { one.id = 'kept'; }")
    text(page).press_sequentially("eo")
    judged(page)
    assert tokens(page) == ["O", " R", "ome", "o"]
    assert page.locator("#kept").text_content() == "O"


def test_a_text_is_continued_and_a_seed_repeats_it(page: Page, open_page: Any) -> None:
    found = []
    for one in (page, open_page()):
        opened(one, record({"tokens": words("ROMEO:\n")}))
        found.append(continued(one))
    assert found[0] == found[1]


def test_one_undo_takes_a_continuation_back_and_the_next_what_was_typed(page: Page) -> None:
    added = written(page, "O Romeo")
    page.keyboard.press("Control+z")
    assert value(page) == "O Romeo"
    page.get_by_role("button", name="Undo").click()
    assert value(page) == ""
    text(page).press("Control+Shift+z")
    page.get_by_role("button", name="Redo").click()
    assert value(page) == "O Romeo" + added


def test_an_alternative_begins_a_branch_from_which_the_text_goes_on(page: Page) -> None:
    opened(page, record({"tokens": words("ROMEO:\nI am")}))
    first = "ROMEO:\nI am" + continued(page)
    text(page).press("Control+Home")
    for _ in range(len("ROMEO:\nI am") + 1):
        text(page).press("ArrowRight")
    page.wait_for_timeout(100)  # the panel follows the caret with the next picture
    panel = page.get_by_role("region", name="The token at the caret")
    other = panel.get_by_role("listitem").locator("button:not([aria-current])").first
    taken = other.locator(".token").text_content() or ""
    other.click()
    page.get_by_role("status").filter(has_text="8 tokens written").wait_for()
    second = value(page)
    assert second != first
    assert second.startswith("ROMEO:\nI am" + taken.replace("␣", " ").replace("⏎", "\n"))
    rows(page).nth(2).wait_for()
    assert rows(page).count() == 3
    rows(page).nth(1).click()
    assert value(page) == first
    assert text(page).evaluate("e => e.selectionStart === e.selectionEnd")


def test_the_mouse_over_a_token_shows_what_else_could_stand_there(page: Page) -> None:
    opened(page, record({"tokens": words("O Romeo, Romeo")}))
    judged(page)
    box = page.locator(".backdrop span", has_text=",").bounding_box()
    assert box
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    card = page.locator(".hover")
    card.wait_for(state="visible")
    assert card.locator("b.token").text_content() == ","
    shares = [float(s.rstrip("%")) for s in card.locator("li .number").all_text_contents()[:3]]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0
    card.locator("button:not([aria-current])").first.click()
    page.get_by_role("status").filter(has_text="tokens written").wait_for()
    assert value(page).startswith("O Romeo")
    assert not value(page).startswith("O Romeo, Romeo")


def test_an_edit_within_what_was_written_begins_a_branch(page: Page) -> None:
    whole = "O Romeo" + written(page, "O Romeo")
    text(page).press("Control+End")
    for _ in range(3):
        text(page).press("Backspace")
    text(page).press_sequentially("!!")
    judged(page)
    assert value(page) == whole[:-3] + "!!"
    rows(page).nth(2).wait_for()
    assert rows(page).count() == 3
    rows(page).nth(1).click()
    assert value(page) == whole


def test_several_texts_are_written_at_once_and_compared(page: Page) -> None:
    opened(page, record({"tokens": words("ROMEO:\nI")}, n=3))
    page.get_by_role("button", name="Continue × 3").click()
    page.get_by_role("status").filter(has_text="24 tokens written in 3 texts").wait_for()
    rows(page).nth(3).wait_for()
    assert rows(page).count() == 4
    for i in (1, 2, 3):
        rows(page).nth(i).locator(".choose").click()
    page.get_by_role("button", name="Compare 3").click()
    columns = page.get_by_role("dialog", name="Side by side").get_by_role("article")
    columns.nth(2).wait_for()  # after what the server says of their tokens
    assert columns.count() == 3
    assert len(set(columns.locator(".text").all_text_contents())) == 3
    for i in range(3):
        assert (columns.nth(i).locator(".common").text_content() or "").startswith("ROMEO:\nI")
        assert "perplexity" in (columns.nth(i).text_content() or "")
    shown = columns.nth(2).locator(".text").text_content()
    columns.nth(2).get_by_role("button", name="Write here").click()
    assert value(page) == shown


def test_texts_that_were_not_looked_at_yet_are_judged_to_be_compared(page: Page) -> None:
    tree = record(
        {"tokens": words("O ")},
        {"tokens": words("Romeo"), "parent": "0"},
        {"tokens": words("xyzzy"), "parent": "0", "name": "magic"},
        leaf="1",
    )
    opened(page, tree)
    for i in (1, 2):
        rows(page).nth(i).locator(".choose").click()
    page.get_by_role("button", name="Compare 2").click()
    columns = page.get_by_role("dialog", name="Side by side").get_by_role("article")
    columns.nth(1).get_by_text("perplexity").wait_for()
    columns.nth(1).get_by_role("heading", name="magic").wait_for()
    perplexities = [
        float((line or "").rsplit(" ", 1)[1])
        for line in columns.locator("p.soft").all_text_contents()
    ]
    assert 1 < perplexities[0] < perplexities[1]
    styles = (
        columns.nth(1)
        .locator(".text .s4, .text .s3")
        .first.evaluate("one => getComputedStyle(one).boxShadow")
    )
    assert "-2px" in styles or "-4px" in styles  # a line says the level where no colour is seen


def test_branches_are_walked_named_and_pruned_with_the_keyboard_alone(page: Page) -> None:
    tree = record(
        {"tokens": words("One")},
        {"tokens": words(" two"), "parent": "0"},
        {"tokens": words(" three"), "parent": "0"},
        leaf="1",
    )
    opened(page, tree)
    rows(page).nth(1).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert value(page) == "One three"
    page.keyboard.press("F2")
    page.keyboard.type("better")
    page.keyboard.press("Enter")
    page.get_by_role("treeitem", name="better", selected=True).wait_for()
    page.keyboard.press("Delete")
    page.get_by_role("treeitem", name="better").wait_for(state="detached")
    assert value(page) == "One"
    page.keyboard.press("Control+z")
    page.get_by_role("treeitem", name="better").wait_for()
    assert value(page) == "One three"


def test_writing_branching_and_undoing_need_no_mouse(page: Page) -> None:
    page.keyboard.press("Tab")
    for _ in range(30):
        if page.evaluate("document.activeElement.id") == "text":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("O Romeo")
    judged(page)
    page.keyboard.press("Alt+Digit2")  # "ome o" gives way to the second best
    page.get_by_role("status").filter(has_text="tokens written").wait_for()
    assert value(page).startswith("O Rome")
    assert not value(page).startswith("O Romeo")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert value(page) == "O Romeo"
    page.keyboard.press("Alt+c")
    assert page.get_by_label("Colour").input_value() == "rank"
    page.keyboard.press("Alt+b")
    assert page.get_by_label("Tokens", exact=True).is_checked()


def test_escape_stops_the_text_and_what_came_stays(page: Page) -> None:
    opened(page, record({"tokens": words("ROMEO:\n")}, max_tokens=400))
    text(page).focus()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("e => e.value.length > 20", arg=text(page).element_handle())
    page.keyboard.press("Escape")
    page.get_by_role("status").filter(has_text="Stopped after").wait_for()
    before = value(page)
    page.wait_for_timeout(200)
    assert value(page) == before
    assert len(before) > 20


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_a_server_that_dies_leaves_what_came_and_goes_on_when_it_is_back(
    open_page: Any, watched: Watched
) -> None:
    port = free_port()
    watched.forgive("ERR_(CONNECTION|INCOMPLETE|EMPTY)|status of 503")  # while it starts
    with servers.command("--port", port) as first:
        page = open_page(first)
        opened(page, record({"tokens": words("ROMEO:\n")}, max_tokens=400))
        page.get_by_role("button", name="Continue").click()
        page.wait_for_function("e => e.value.length > 20", arg=text(page).element_handle())
        first.process.kill()
        page.get_by_role("alert").filter(has_text="what came stays").wait_for()
        before = value(page)
        text(page).press("Control+End")
        text(page).press_sequentially(" But")
    with servers.command("--port", port):
        page.get_by_role("status").filter(has_text="The server is back").wait_for()
        page.get_by_role("button", name="Continue").click()
        page.wait_for_function(
            "([e, n]) => e.value.length > n",
            arg=[text(page).element_handle(), len(before) + len(" But")],
        )
        page.keyboard.press("Escape")
        assert value(page).startswith(before + " But")


HOSTILE = "<img src=x onerror=alert(1)>\u202eevil\u202c \x07\x00\r&amp;<script>alert(1)</script>"


def test_hostile_text_is_text_and_its_controls_are_seen(page: Page) -> None:
    opened(page, record({"tokens": words(HOSTILE), "name": "<b>\u202ename"}))
    judged(page)
    assert page.locator("#room-write :is(img, script, b.x)").count() == 0
    shown = value(page)
    assert not any(c in shown for c in "\u202e\u202c\x07\x00\r")
    assert "<script>alert(1)</script>" in shown
    assert "␇␀␍" in shown
    assert "\u202e" not in (rows(page).first.text_content() or "")
    assert saved_text(page) == HOSTILE


def test_editing_beside_hostile_characters_keeps_them(page: Page) -> None:
    opened(page, record({"tokens": words("a\u202eb c\r\nd")}))
    judged(page)
    text(page).press("Control+End")
    text(page).press_sequentially("e")
    text(page).press("Control+Home")
    text(page).press_sequentially("x")
    judged(page)
    assert saved_text(page) == "xa\u202eb c\r\nde"


def test_characters_that_lie_in_several_tokens_are_whole(page: Page) -> None:
    text(page).fill("é😀 \ufeffx")
    judged(page)
    parts = tokens(page)
    assert len(parts) > 8  # bard's vocabulary has no characters beyond ASCII
    assert parts[0] == "é"
    assert "😀" in parts
    text(page).press("Control+Home")
    text(page).press("Delete")
    judged(page)
    assert value(page).startswith("😀 ")
    assert "\ufffd" not in value(page)
