"""What the page does without its server, without the key, and without a browser's favours."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import browsers
import pytest
import servers
from browsers import Watched

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

# As where a person has forbidden sites to keep anything: even to look at a storage is an error.
NO_STORAGE = """
for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, {
    get() { throw new DOMException("denied", "SecurityError"); },
  });
}
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def enter_key(page: Page, key: str) -> None:
    page.get_by_role("textbox", name="Key").fill(key)
    page.keyboard.press("Enter")


def test_a_server_that_is_not_there_yet_is_asked_again(open_page: Any, watched: Watched) -> None:
    port = str(free_port())
    watched.forgive("ERR_CONNECTION_(REFUSED|RESET)|status of 503")  # gone, and being opened
    with servers.command("--port", port) as first:
        page = open_page(first)
        page.route("**/page/v1/model", lambda route: route.abort("connectionrefused"))
        page.reload()
        page.get_by_role("alert").filter(has_text="cannot be reached").wait_for()
        first.process.kill()
        page.wait_for_timeout(100)
        page.unroute("**/page/v1/model")
    with servers.command("--port", port):
        page.wait_for_selector(browsers.READY)
        assert page.locator("#error").text_content() == ""
        browsers.settled(page)


def test_the_key_is_asked_for_until_it_is_right(open_page: Any, watched: Watched) -> None:
    watched.forgive("status of 401")
    with servers.command("--api-key", "secret") as locked:
        page = open_page(locked, ready=False)
        dialog = page.get_by_role("dialog", name="key")
        dialog.get_by_text("a key is needed").wait_for()
        for _ in range(3):  # there is nothing behind it to go back to
            page.keyboard.press("Escape")
            page.wait_for_timeout(50)
            assert dialog.is_visible()
        enter_key(page, "secreta")
        dialog.get_by_text("the key is wrong").wait_for()
        enter_key(page, "secret")
        page.wait_for_selector(browsers.READY)
        assert not dialog.is_visible()
        page.reload()
        page.wait_for_selector(browsers.READY)
        assert "secret" not in page.content()
        assert page.evaluate("JSON.stringify(localStorage)").find("secret") < 0
        browsers.settled(page)


def test_a_browser_that_keeps_nothing_still_shows_everything(open_page: Any) -> None:
    page = open_page(script=NO_STORAGE)
    for room in ("Look inside", "What if", "Write"):
        page.get_by_role("tab", name=room).click()
        assert page.get_by_role("tabpanel", name=room).is_visible()
    page.get_by_role("textbox", name="Text", exact=True).fill("O Romeo")
    page.get_by_role("alert").filter(has_text="does not keep the text").wait_for()


def test_a_key_works_where_nothing_is_kept(open_page: Any, watched: Watched) -> None:
    watched.forgive("status of 401")
    with servers.command("--api-key", "secret") as locked:
        page = open_page(locked, ready=False, script=NO_STORAGE)
        enter_key(page, "secret")
        page.wait_for_selector(browsers.READY)
        browsers.settled(page)
