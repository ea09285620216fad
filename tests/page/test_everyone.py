"""The page on a telephone and on a wall, by keyboard alone, in light and dark, without motion."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import browsers
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

ROOMS = ("Write", "Look inside", "What if")
TEXT = "O Romeo, Romeo! wherefore art thou"
# What axe-core leaves to people is looked at, too, but for contrasts with what lies behind a text.
RUN_AXE = """
async () => {
  const { violations, incomplete } = await axe.run(document);
  const unclear = incomplete.filter(({ id }) => id !== "color-contrast");
  return [...violations, ...unclear].flatMap(({ id, help, nodes }) =>
    nodes.map((n) => `${id}: ${help}: ${n.html.slice(0, 200)} ${n.any.map((a) => a.message)}`));
}
"""
# An element that has the focus and looks, with all that it lies in, as it does without it.
UNSEEN_FOCUS = """
() => {
  const looks = (one) => {
    const found = [];
    for (; one !== null && one !== document.body; one = one.parentElement) {
      const { outlineStyle, outlineWidth, borderColor, boxShadow } = getComputedStyle(one);
      found.push(outlineStyle, outlineWidth, borderColor, boxShadow);
    }
    return found.join();
  };
  const found = document.activeElement;
  if (found === document.body) return "";
  const before = looks(found);
  found.blur();
  const isSeen = looks(found) !== before;
  found.focus();
  return isSeen ? "" : found.outerHTML.slice(0, 200);
}
"""


@cache
def axe() -> str:
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def violations(page: Page) -> list[str]:
    """What axe-core finds in what is shown now."""
    page.evaluate(axe())
    found: list[str] = page.evaluate(RUN_AXE)
    return found


def enter(page: Page, room: str) -> None:
    """Open a room, and wait until it has its answers."""
    page.get_by_role("tab", name=room).click()
    page.get_by_role("tabpanel", name=room).wait_for()
    browsers.settled(page)


def write(page: Page, text: str = TEXT) -> None:
    """Put a text into the editor."""
    enter(page, "Write")
    page.get_by_role("textbox", name="Text", exact=True).fill(text)
    browsers.settled(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_axe_finds_no_violation(open_page: Any, width: int, scheme: str) -> None:
    page = open_page(size=(width, 800), color_scheme=scheme)
    found = []
    for room in ROOMS:
        enter(page, room)
        found += [f"{room} without a text: {v}" for v in violations(page)]
    write(page)
    for room in ROOMS:
        enter(page, room)
        found += [f"{room}: {v}" for v in violations(page)]
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        browsers.settled(page)
        found += [f"{room}, opened: {v}" for v in violations(page)]
    assert found == []


@pytest.mark.parametrize("width", [360, 768, 1440, 3840])
def test_nothing_lies_beside_the_window(open_page: Any, width: int) -> None:
    page = open_page(size=(width, 800))
    write(page, TEXT * 5)
    for room in ROOMS:
        enter(page, room)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width, room


def test_the_rooms_are_walked_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    page.keyboard.press("Tab")
    for room in ("Look inside", "What if", "Write"):
        page.keyboard.press("ArrowRight")
        tab = page.get_by_role("tab", name=room)
        assert tab.evaluate("(t) => t === document.activeElement")
        assert page.locator("#rooms").get_by_role("tab", selected=True).all_text_contents() == [
            room
        ]
        assert page.locator("main > [role=tabpanel]:visible").count() == 1
        assert page.get_by_role("tabpanel", name=room).is_visible()


def test_whatever_has_the_focus_can_be_seen_to_have_it(page: Page) -> None:
    write(page)
    for room in ROOMS:
        enter(page, room)
        page.evaluate("document.activeElement.blur()")
        for _ in range(60):
            page.keyboard.press("Tab")
            assert page.evaluate(UNSEEN_FOCUS) == ""


def test_nothing_moves_for_those_who_want_no_motion(page: Page) -> None:
    write(page)
    for room in ROOMS:
        enter(page, room)
        assert page.evaluate("document.getAnimations().length") == 0


def test_the_open_room_is_told_without_colours(open_page: Any) -> None:
    page = open_page(forced_colors="active")
    weight = "(tab) => getComputedStyle(tab).fontWeight"
    weights = {room: page.get_by_role("tab", name=room).evaluate(weight) for room in ROOMS}
    assert weights["Write"] > weights["Look inside"] == weights["What if"]
