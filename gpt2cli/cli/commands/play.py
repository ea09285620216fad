"""`gpt2 play`: the page of the server, in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread, Timer
from typing import Annotated

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group, grouped
from gpt2cli.cli.io.terminal import complain
from gpt2cli.cli.listening import check_library, hosts, say_where, server

_WARM_UP = 1.0  # seconds that the page has the machine for itself


@dataclass(frozen=True)
class Page(Group):
    """Page"""

    port: Annotated[
        int,
        options.setting(
            "--port", metavar="N", min=0, max=65535, help="Port; 0 for any that is free."
        ),
    ] = 0
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only say the address, and open nothing.")
    ] = False


@grouped
def play(*, where: options.Where, page: Page, messages: options.Common) -> None:
    """Write with a model and look inside it, in the browser.

    A text grows as a tree of continuations in which each token shows what else it might have been,
    its way through the layers can be followed, and parts of the model can be switched off. The page
    is this program's own: nothing is loaded from elsewhere, and only this machine can reach it.

    \b
    Examples:
      gpt2 play --model bard
      gpt2 play -m 124M --adapter tuned
      gpt2 play -m 124M --no-browser --port 8000
    """
    from gpt2cli.serving.http.address import Address
    from gpt2cli.serving.http.settings import Options, Policy

    check_library()
    address = Address(port=page.port)
    model = opening.load(where)
    with address.bind() as listener:
        url = address.url(listener)

        def ready() -> None:
            say_where(model, url)
            if not page.no_browser:
                Thread(target=_show, args=(f"{url}/",), daemon=True).start()
            warming.start()

        chosen = Options(policy=Policy(hosts=hosts(address)), quiet=True)
        found = server(model, chosen, ready)
        # The first look inside needs what takes seconds to import.
        warming = Timer(_WARM_UP, found.service.reference.warm_up)
        warming.daemon = True
        found.run([listener])
    _stop(warming)


def _show(url: str) -> None:
    """Open a browser, or say that there is none."""
    opens = False
    if _has_screen():
        with suppress(Exception):  # of whatever programs there are; the address has been said
            opens = webbrowser.open(url)
    if not opens:
        complain(f"no browser was found here; open {url}")


def _has_screen() -> bool:
    """Whether a browser has a place; one in this terminal would take it from the command."""
    if sys.platform in ("win32", "darwin") or os.environ.get("BROWSER"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _stop(warming: Timer) -> None:
    """End the process at once if it still warms up, for which an orderly end would wait or fail."""
    warming.cancel()
    if warming.is_alive():
        warming.join(0.1)
    if warming.is_alive():
        os._exit(0)
