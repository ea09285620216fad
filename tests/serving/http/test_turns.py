"""Whose turn it is to look inside, and what becomes of those who do not wait for it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import servers
from servers import Answer

from gpt2cli.analysis import attending, effects, patching
from gpt2cli.errors import UsageError
from gpt2cli.model import trace
from gpt2cli.serving.http import turns
from gpt2cli.serving.http.server import Server

CLEAN, CORRUPTED = "I told the woman that", "I told the man that"
Ask = Callable[..., Answer]


class Endless:
    """Work that ends only when it is told to; it stands in for a function with `advance`."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    def __call__(self, *_: Any, advance: Any, **__: Any) -> Any:
        self.begun.set()
        try:
            while True:
                advance(1)
                time.sleep(0.01)
        finally:
            self.ended.set()


@contextmanager
def asking(port: int, name: str, **body: Any) -> Iterator[http.client.HTTPConnection]:
    """A question whose answer is not awaited; its client goes in the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", f"/page/v1/{name}", json.dumps(body), servers.JSON)
    try:
        yield connection
    finally:
        connection.close()


def test_a_client_that_goes_ends_its_patches(
    look: Ask, served: tuple[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(patching, "patch", endless)
    with asking(served[0], "patch", clean=CLEAN, corrupted=CORRUPTED) as connection:
        response = connection.getresponse()
        assert response.status == 200
        assert response.readline().startswith(b'data: {"done":')
        assert not endless.ended.is_set()
    assert endless.ended.wait(10)
    monkeypatch.undo()
    assert look("patch", clean=CLEAN, corrupted=CORRUPTED).status == 200


def test_others_are_answered_between_patches(
    look: Ask, complete: Ask, served: tuple[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(patching, "patch", endless)
    with asking(served[0], "patch", clean=CLEAN, corrupted=CORRUPTED):
        assert endless.begun.wait(10)
        for prompt in ("a", "b", "c"):
            assert look("inspect", prompt=prompt).status == 200
        assert complete(prompt="O,", max_tokens=3).status == 200
        assert not endless.ended.is_set()
    assert endless.ended.wait(10)


def test_a_client_that_goes_ends_its_computation_after_a_layer(
    look: Ask, served: tuple[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr(trace, "trace", lambda *given: endless(advance=given[-1]))
    with asking(served[0], "attention", prompt="never asked before"):
        assert endless.begun.wait(10)
        time.sleep(0.05)
        assert not endless.ended.is_set()
    assert endless.ended.wait(10)
    monkeypatch.undo()
    assert look("attention", prompt="never asked before").status == 200


def test_while_one_computes_the_server_answers_and_who_goes_loses_its_turn(
    look: Ask, ask: Ask, complete: Ask, served: tuple[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    computed: list[Any] = []

    def held(*_: Any, **__: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        raise UsageError("held")

    monkeypatch.setattr(attending, "head", held)
    monkeypatch.setattr(effects, "compare", lambda *given, **_: computed.append(given))
    with asking(served[0], "head", prompt="a", layer=0, head=0) as first:
        assert begun.wait(10)
        with asking(served[0], "effect", prompt="a"):
            assert ask("/health").status == 200
            assert complete(prompt="O,", max_tokens=3).status == 200
        time.sleep(0.2)  # until the server knows that it is gone
        go_on.set()
        assert first.getresponse().status == 400
    assert look("inspect", prompt="a").status == 200  # whose turn is after that of the one gone
    assert not computed


def test_too_many_that_wait_are_sent_away(look: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MOST_WAITING", 0)
    found = look("attention", prompt="a")
    assert (found.status, found.json["error"]["code"]) == (429, "queue_full")
    assert int(found.headers["retry-after"]) >= 1
