"""What a server makes of a broken engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from connections import HEAD, connect, statuses, until_closed
from servers import URL, Asking, ask, here, until

from gpt2cli.api import LoadedModel
from gpt2cli.errors import WeightsError
from gpt2cli.serving.http.server import Server


def break_down(server: Server, error: Exception, texts: int, *, once: bool = False) -> None:
    """Let the engine fail as soon as a batch has so many texts."""
    engine = server.service.engine
    assert engine is not None
    decoder, done = engine.scheduler.decoder, threading.Event()
    read = decoder.read

    def fail(chunks: Any) -> Any:
        if len(chunks) < texts or done.is_set():
            time.sleep(0 if done.is_set() else 0.02)  # so that the first do not end before
            return read(chunks)
        if once:
            done.set()
        raise error

    decoder.read = fail  # type: ignore[method-assign]


@pytest.mark.parametrize("stays", [True, False])
def test_when_the_engine_has_failed_all_are_told_and_the_server_ends(
    bard: LoadedModel, stays: bool
) -> None:
    with here(bard) as (port, server):
        assert server.service.engine is not None
        if stays:  # long enough to be asked how it is
            server.service.engine._broken = lambda: None
        break_down(server, RuntimeError("a bit has flipped"), 6)
        asked = [Asking(port), Asking(port, stream=True), Asking(port, n=4)]
        for one in asked:
            answer = one.result()
            if answer.headers["content-type"].startswith("text/event-stream"):
                answer.body = answer.body.rstrip().rpartition(b"data: ")[2]
            else:
                assert answer.status == 503
            assert answer.error == "the engine has failed"
        if stays:
            assert ask(port, "/health").status == 503
            later = ask(port, URL, {"prompt": "O,"})
            assert (later.status, later.error) == (
                503,
                "the engine has failed; restart the server",
            )
        else:
            until(lambda: server.failure is not None)
            assert str(server.failure) == "the engine has failed: RuntimeError: a bit has flipped"


def test_a_stream_that_has_begun_ends_with_an_error(bard: LoadedModel) -> None:
    with here(bard) as (port, server), connect(port) as connection:
        body = json.dumps({"prompt": "O,", "stream": True, "max_tokens": 250, "n": 2}).encode()
        length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        begun = threading.Event()
        step = server.service.engine.scheduler.step  # type: ignore[union-attr]

        def fail() -> Any:
            if begun.is_set():
                raise WeightsError("the weights are not numbers")
            time.sleep(0.01)
            return step()

        server.service.engine.scheduler.step = fail  # type: ignore[union-attr,method-assign]
        connection.sendall(HEAD + length + body)
        first = connection.recv(1 << 16)
        begun.set()
        whole = first + until_closed(connection)
        assert statuses(whole) == [200]
        events = re.findall(rb"data: (.*)", whole)
        assert len(events) > 1
        assert json.loads(events[-1])["error"] == {
            "message": "the weights are not numbers",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert b"[DONE]" not in whole


def test_weights_that_are_no_numbers_end_what_is_open_and_nothing_else(bard: LoadedModel) -> None:
    with here(bard) as (port, server):
        break_down(server, WeightsError("the weights are not numbers"), 4, once=True)
        for one in [Asking(port), Asking(port, n=3)]:
            answer = one.result()
            assert (answer.status, answer.error) == (500, "the weights are not numbers")
        assert ask(port, URL, {"prompt": "O,", "n": 3}).status == 200
        assert ask(port, "/health").status == 200


def test_the_command_ends_with_a_sentence_when_its_engine_has_failed() -> None:
    script = (
        "from gpt2cli.generation.scheduler import Scheduler\n"
        "def fail(self): raise RuntimeError('a bit has flipped')\n"
        "Scheduler.step = fail\n"
        "from gpt2cli.cli import main\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "-m", "bard", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
        assert found is not None
        assert ask(int(found[1]), URL, {"prompt": "O,"}).status == 503
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("the engine has failed: RuntimeError: a bit has flipped")
