"""Chromium, driven by Playwright, and pages that are watched for what must not happen."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

NAMES = ("chromium", "chromium-browser", "google-chrome")
# It asks nobody for updates, so that every request to elsewhere is one of the page's.
QUIET = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
READY = 'body[data-ready="true"]'  # a selector: the policy lets no expression wait in the page
PAUSE = 80  # milliseconds; four are longer than the page waits with a question while one types
SECONDS = 30  # of patience; two cores may be busy with other tests


def missing() -> str | None:
    """Why there is no browser, or None if there is one."""
    if find_spec("playwright") is None:
        return "Playwright is not installed: pip install -e '.[dev]'"
    if executable() is None:
        return f"none of {', '.join(NAMES)} is installed"
    return None


def executable() -> str | None:
    """The path of the distribution's Chromium, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A browser, closed in the end.

    Until then an event loop runs in this thread, so that `asyncio.run` does not work.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


_WAITING: WeakKeyDictionary[Page, set[Request]] = WeakKeyDictionary()


def settled(page: Page, seconds: float = SECONDS) -> None:
    """Wait until a page has all its answers and has shown them."""
    quiet, end = 0, time.monotonic() + seconds
    while quiet < 4:
        page.wait_for_timeout(PAUSE)
        is_busy = _WAITING[page] or page.locator("main [aria-busy=true]:visible").count()
        quiet = 0 if is_busy else quiet + 1
        assert time.monotonic() < end, [request.url for request in _WAITING[page]]


@dataclass
class Watched:
    """What has gone wrong in pages: messages, exceptions, requests to elsewhere."""

    faults: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)

    def forgive(self, pattern: str) -> None:
        """Expect faults in which this regular expression is found."""
        self.forgiven.append(pattern)

    @property
    def unexpected(self) -> list[str]:
        """The faults that nothing forgives."""
        return [f for f in self.faults if not any(re.search(p, f) for p in self.forgiven)]

    def watch(self, page: Page, origin: str) -> None:
        """Write down what goes wrong in a page that belongs to an origin."""

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                where = message.location.get("url", "")
                self.faults.append(f"console {message.type}: {message.text} ({where})")

        def asked(request: Request) -> None:
            there = urlsplit(request.url)
            if (
                there.scheme not in ("data", "blob")
                and f"{there.scheme}://{there.netloc}" != origin
            ):
                self.faults.append(f"request to elsewhere: {request.url}")

        page.on("console", said)
        page.on("pageerror", lambda error: self.faults.append(f"exception: {error}"))
        page.on("request", asked)
        waiting = _WAITING[page] = set()
        page.on("request", lambda request: waiting.add(request))
        page.on("requestfinished", lambda request: waiting.discard(request))
        page.on("requestfailed", lambda request: waiting.discard(request))


def opened(
    browser: Browser,
    url: str,
    watched: Watched,
    *,
    size: tuple[int, int] = (1280, 800),
    ready: bool = True,
    script: str | None = None,
    **details: Any,
) -> Page:
    """The page at a URL in a context of its own, once it can be used.

    Args:
        browser: What opens it.
        url: An address on this machine.
        watched: What its faults are written to.
        size: Of the window, in CSS pixels.
        ready: Whether to wait until the rooms are open.
        script: What runs in the page before everything else.
        details: Of Playwright's context, such as `color_scheme`, `reduced_motion`,
            `forced_colors`, `bypass_csp`, `storage_state`.
    """
    width, height = size
    options = {"color_scheme": "light", "reduced_motion": "reduce"} | details
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(1000 * SECONDS)
    if script is not None:
        context.add_init_script(script)
    page = context.new_page()
    there = urlsplit(url)
    watched.watch(page, f"{there.scheme}://{there.netloc}")
    page.goto(url)
    if ready:
        page.wait_for_selector(READY)
    return page
