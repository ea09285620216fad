"""A browser, a server of bard, and its page in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import browsers
import pytest
import servers
from browsers import Watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


class Open(Protocol):
    """What opens pages; see `browsers.opened`."""

    def __call__(
        self,
        server: servers.Command | None = None,
        *,
        path: str = "/",
        size: tuple[int, int] = (1280, 800),
        ready: bool = True,
        script: str | None = None,
        **details: Any,
    ) -> Page: ...


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a browser where there is none."""
    why = browsers.missing()
    if item.get_closest_marker("browser") and why:
        pytest.skip(why)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of each file its own: while it is open, `asyncio.run` would fail in other tests."""
    with browsers.launched() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Command]:
    """A server of bard that the tests of a file share."""
    with servers.command() as found:
        yield found


@pytest.fixture
def watched() -> Iterator[Watched]:
    """The faults of a test's pages; it fails if there is one that it does not `forgive`."""
    found = Watched()
    yield found
    assert not found.unexpected, "\n".join(found.unexpected)


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest, watched: Watched) -> Iterator[Open]:
    """Open a page of the file's server, or of another, in a context of its own.

    Such as `open_page(size=(360, 640), color_scheme="dark", reduced_motion="no-preference")`.
    """

    def opened(
        server: servers.Command | None = None,
        *,
        path: str = "/",
        size: tuple[int, int] = (1280, 800),
        ready: bool = True,
        script: str | None = None,
        **details: Any,
    ) -> Page:
        found = server or request.getfixturevalue("server")
        url = f"http://127.0.0.1:{found.port}{path}"
        options = {"size": size, "ready": ready, "script": script, **details}
        return browsers.opened(browser, url, watched, **options)

    yield opened
    for context in browser.contexts:
        context.close()


@pytest.fixture
def page(open_page: Open) -> Page:
    """The page, ready, in a window of 1280 × 800, light, without motion, its storage empty."""
    return open_page()
