"""Clients that go, and more of them than there is room for."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import servers

from gpt2cli.api import LoadedModel
from gpt2cli.serving.http.engine import Engine
from gpt2cli.serving.http.server import Server

# A text that goes on for a minute and more.
LONG: dict[str, Any] = {"max_tokens": 50_000, "overflow": "slide", "ignore_eos": True}
FREED_SECONDS = 0.1


def engine_of(server: Server) -> Engine:
    assert server.service.engine is not None
    return server.service.engine


def is_free(engine: Engine) -> bool:
    """Whether nothing is written, and all pages are there for others."""
    scheduler = engine.scheduler
    is_empty = scheduler.decoder.free_pages == scheduler.decoder.pages
    return not engine.open and not scheduler.busy and is_empty


def first_token(connection: http.client.HTTPConnection) -> None:
    """Wait for a stream to begin."""
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")


def is_writing(engine: Engine) -> bool:
    return engine.scheduler.running > 0


@pytest.fixture
def engine(served: tuple[int, Server]) -> Iterator[Engine]:
    """The server's, which has nothing to do before and after a test."""
    engine = engine_of(served[1])
    servers.until(lambda: is_free(engine))
    yield engine
    servers.until(lambda: is_free(engine))


KINDS: list[dict[str, Any]] = [
    {"prompt": "a", "stream": True},
    {"prompt": "a"},
    {"prompt": ["a", "b", "c"], "n": 3, "stream": True},
    {"prompt": [[i] * 240 for i in range(100)], "n": 1},  # it is still being read
    {"prompt": [[i] * 240 for i in range(100)], "n": 1, "stream": True},
    {"prompt": "a", "n": 128},  # some are written, and some wait
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_goes_frees_its_places_at_once(
    served: tuple[int, Server], engine: Engine, kind: dict[str, Any]
) -> None:
    seconds = []
    for _ in range(3):
        with servers.begun(served[0], **kind, **LONG):
            servers.until(lambda: is_writing(engine))
        left = time.monotonic()
        servers.until(lambda: is_free(engine))
        seconds.append(time.monotonic() - left)
    assert min(seconds) < FREED_SECONDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_goes_changes_no_text_beside_its_own(
    served: tuple[int, Server], engine: Engine, bard: LoadedModel, kind: dict[str, Any]
) -> None:
    body = {"prompt": "ROMEO:", "seed": 1, "max_tokens": 60}
    expected = bard.generate(**body, temperature=1.0, top_p=1.0).text
    with servers.begun(served[0], **kind, **LONG) as going:
        servers.until(lambda: is_writing(engine))
        before = engine.open
        with servers.begun(served[0], **body) as neighbour:
            servers.until(lambda: engine.open > before)
            going.close()
            found = servers.Answer(200, {}, neighbour.getresponse().read())
    assert found.json["choices"][0]["text"] == expected


def test_a_client_may_go_at_any_moment(served: tuple[int, Server], engine: Engine) -> None:
    for i in range(30):
        with servers.begun(served[0], prompt=["a", "b"], stream=i % 2 == 0, **LONG):
            time.sleep(i / 1000)
    servers.until(lambda: is_free(engine))


def test_one_that_goes_disturbs_none_that_are_streamed(
    served: tuple[int, Server], engine: Engine, bard: LoadedModel
) -> None:
    bodies = [{"prompt": f"row {i}", "seed": i, "max_tokens": 40} for i in range(8)]
    expected = [bard.generate(**body, temperature=1.0, top_p=1.0).text for body in bodies]
    with ExitStack() as stack:
        staying = []
        for body in bodies:
            staying.append(stack.enter_context(servers.begun(served[0], stream=True, **body)))
            going = stack.enter_context(
                servers.begun(served[0], prompt="a", n=3, stream=True, **LONG)
            )
            first_token(going)
            going.sock.close()
            going.close()
        answers = [one.getresponse() for one in staying]
        found = [servers.Answer(200, {}, answer.read()).chunks for answer in answers]
    joined = ["".join(chunk["choices"][0]["text"] for chunk in chunks) for chunks in found]
    assert joined == expected


def test_a_full_queue_says_when_to_come_again(bard: LoadedModel) -> None:
    with servers.here(bard, max_sequences=1, queue=2) as (port, server), ExitStack() as stack:
        engine = engine_of(server)
        opened = [stack.enter_context(servers.begun(port, prompt="a", **LONG)) for _ in range(3)]
        servers.until(lambda: engine.open == 3 and is_writing(engine))
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}):
            found = servers.ask(port, "/v1/completions", body)
            assert (found.status, found.json["error"]["code"]) == (429, "queue_full")
            assert found.json["error"]["type"] == "rate_limit_error"
            assert 1 <= int(found.headers["retry-after"]) <= 60
            assert "3 texts" in found.error
        assert servers.ask(port, "/v1/models").status == 200
        # One who waits and goes makes room for another, who waits in turn.
        opened[2].close()
        servers.until(lambda: engine.open == 2)
        body = {"prompt": "a", "seed": 1, "max_tokens": 4}
        another = stack.enter_context(servers.begun(port, **body))
        servers.until(lambda: engine.open == 3)
        for one in opened[:2]:
            one.close()
        answer = servers.Answer(200, {}, another.getresponse().read())
        [expected] = bard.generate(**body, temperature=1.0, top_p=1.0).samples
        assert answer.json["choices"][0]["text"] == expected.text
        servers.until(lambda: is_free(engine))


def test_a_request_that_is_alone_fits_whatever_the_queue(bard: LoadedModel) -> None:
    with servers.here(bard, max_sequences=2, queue=0) as (port, server):
        body = {"prompt": "a", "n": 9, "max_tokens": 4, "ignore_eos": True}
        found = servers.ask(port, "/v1/completions", body)
        assert found.json["usage"]["completion_tokens"] == 36
        assert engine_of(server).open == 0


def test_samples_wait_for_places_and_are_written_in_turn(bard: LoadedModel) -> None:
    body = {"prompt": "a", "seed": 3, "max_tokens": 12}
    expected = bard.generate(**body, samples=7, temperature=1.0, top_p=1.0).samples
    with servers.here(bard, max_sequences=2) as (port, _):
        found = servers.ask(port, "/v1/completions", body | {"n": 7}).json
    assert [c["text"] for c in found["choices"]] == [s.text for s in expected]
