"""One server of bard for all tests that do not need their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import servers
from servers import Answer

from gpt2cli import api
from gpt2cli.api import LoadedModel
from gpt2cli.serving.http.server import Server

Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def bard() -> LoadedModel:
    return api.load("bard")


@pytest.fixture(scope="session")
def served(bard: LoadedModel) -> Iterator[tuple[int, Server]]:
    """The port of a server that is ready, and the server."""
    with servers.here(bard) as found:
        yield found


@pytest.fixture(scope="module")
def attacked(bard: LoadedModel) -> Iterator[int]:
    """The port of a server that the tests of a file share, and none may hurt."""
    with servers.here(bard) as (port, server):
        yield port
        assert server.failure is None
        assert server.service.engine is not None
        servers.until(lambda: server.service.engine.open == 0)


@pytest.fixture
def port(attacked: int) -> Iterator[int]:
    """The same, which answers when the test is over."""
    yield attacked
    assert servers.ask(attacked, servers.URL, {"prompt": "O,", "max_tokens": 1}).status == 200


@pytest.fixture(scope="session")
def ask(served: tuple[int, Server]) -> Ask:
    """Ask the server: a path, and a body unless it is a GET."""
    return partial(servers.ask, served[0])


@pytest.fixture(scope="session")
def complete(ask: Ask) -> Ask:
    """Ask the server for completions, by the fields of a body."""

    def request(**body: Any) -> Answer:
        return ask("/v1/completions", body)

    return request


@pytest.fixture(scope="session")
def look(ask: Ask) -> Ask:
    """Ask the server about the inside: the name of an endpoint, and the fields of a body."""

    def request(name: str, **body: Any) -> Answer:
        return ask(f"/page/v1/{name}", body)

    return request
