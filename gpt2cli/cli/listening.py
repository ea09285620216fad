"""What `gpt2 serve` and `gpt2 play` have in common: a server in this process, and its address."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gpt2cli.cli import opening
from gpt2cli.cli.io.terminal import complain, log
from gpt2cli.errors import GPT2CLIError

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.serving.http.address import Address
    from gpt2cli.serving.http.server import Server
    from gpt2cli.serving.http.settings import Options


def check_library() -> None:
    """Raise `GPT2CLIError` if what serving needs is not installed."""
    from importlib.util import find_spec

    for name in ("starlette", "uvicorn", "httptools", "prometheus_client"):
        if find_spec(name) is None:
            raise GPT2CLIError(f"serving needs {name}: pip install 'gpt2cli[serve]'")


def hosts(address: Address) -> tuple[str, ...]:
    """The names that requests must use; none where it can be reached by any."""
    from gpt2cli.serving.http.settings import LOCAL

    is_local = address.is_local and address.uds is None
    return (*LOCAL, address.host.lower()) if is_local else ()


def server(model: LoadedModel, chosen: Options, ready: Callable[[], None]) -> Server:
    """A server that fetches its model with progress bars, and says on stderr what it does."""
    from gpt2cli.serving.http.server import Server

    return Server(model, chosen, fetch=partial(opening.fetch, model), ready=ready, tell=log)


def say_where(model: LoadedModel, url: str) -> None:
    """Say that the model is open, and where; a browser finds the page there."""
    page = "with a page " if url.startswith("http") else ""
    complain(f"{model.describe()}, {page}at {url}; Ctrl-C ends it")
