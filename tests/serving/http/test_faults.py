"""What a server makes of a broken engine, of broken requests, and of those who mean it ill."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from servers import Answer, ask, command, here, until

import gpt2cli
from gpt2cli.api import LoadedModel
from gpt2cli.errors import WeightsError
from gpt2cli.serving.completions import KNOWN
from gpt2cli.serving.http import engine as engines
from gpt2cli.serving.http import guard, protocol
from gpt2cli.serving.http.server import Server

URL = "/v1/completions"
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def bard() -> LoadedModel:
    return gpt2cli.load("bard")


@pytest.fixture(scope="module")
def port(bard: LoadedModel) -> Iterator[int]:
    """A server that all these tests share, and none may hurt."""
    with here(bard) as (port, server):
        yield port
        assert server.failure is None
        assert server.service.engine is not None
        until(lambda: server.service.engine.open == 0)


@pytest.fixture(autouse=True)
def _is_unhurt(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "port" in request.fixturenames:
        answer = ask(request.getfixturevalue("port"), URL, {"prompt": "O,", "max_tokens": 1})
        assert answer.status == 200


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    found = b""
    with suppress(ConnectionError):
        while data := connection.recv(1 << 16):
            found += data
    return found


def statuses(data: bytes) -> list[int]:
    """The statuses of all responses in there."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


def error_in(data: bytes) -> str:
    """The message of the error object that a response ends with."""
    error = json.loads(data.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def exchange(port: int, *parts: bytes) -> bytes:
    """What comes back until the connection is closed."""
    with connect(port) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        return until_closed(connection)


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, port: int, **body: Any) -> None:
        super().__init__(daemon=True)
        self.answer: Answer | None = None
        self._given = port, {"prompt": "O,", "max_tokens": 200, "ignore_eos": True} | body
        self.start()

    def run(self) -> None:
        port, body = self._given
        self.answer = ask(port, URL, body)

    def result(self) -> Answer:
        """The answer, when it has come."""
        self.join(30)
        assert self.answer is not None
        return self.answer


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


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        "GET /é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        b"GET http:// HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
def test_what_is_no_http_is_refused(port: int, data: bytes) -> None:
    answer = exchange(port, data)
    assert statuses(answer) == [400]
    assert error_in(answer) == "this is no valid HTTP request"


BODIES: dict[str, tuple[bytes, int]] = {
    "no UTF-8": (b'{"prompt": "\xff"}', 400),
    "half a character": (b'{"prompt": "\xe2\x82', 400),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), 400),
    "nothing": (b"", 400),
    "a list": (b"[]", 400),
    "100,000 brackets": (b'{"prompt": ' + b"[" * 100_000, 400),
    "100,000 objects": (b'{"a":' * 100_000, 400),
    "a schema of 5,000 levels": (
        b'{"json_schema": ' + b'{"not":' * 5_000 + b"{}" + b"}" * 5_001,
        400,
    ),
    "too large a number": (b'{"temperature": 1e400}', 400),
    "NaN": (b'{"temperature": NaN}', 400),
    "infinity": (b'{"temperature": -Infinity}', 400),
    "a number of 100,000 digits": (b'{"seed": ' + b"9" * 100_000 + b"}", 400),
    "a seed of 4,000 digits": (b'{"seed": ' + b"9" * 4_000 + b"}", 400),
    "an id of 300 digits": (b'{"prompt": [1e300]}', 400),
    "a negative id": (b'{"prompt": [-1]}', 400),
    "an id beyond the vocabulary": (b'{"prompt": [1024]}', 400),
    "a lone surrogate": (b'{"prompt": "\\ud800"}', 400),
    "a lone surrogate in stop": (b'{"prompt": "a", "stop": "\\ud800", "max_tokens": 1}', 200),
    "a lone surrogate in a name": (b'{"\\ud800": 1}', 400),
    "a lone surrogate in model": (b'{"model": "\\ud800"}', 404),
    "a lone surrogate in regex": (b'{"regex": "\\ud800"}', 400),
    "a lone surrogate in choice": (b'{"choice": ["\\ud800"]}', 400),
    "NUL": (b'{"prompt": "\\u0000", "max_tokens": 1}', 200),
    "a name twice": (b'{"max_tokens": "no", "max_tokens": 1}', 200),
    "10,000 stops": (json.dumps({"stop": ["x"] * 10_000}).encode(), 400),
    "a stop of 1 MB": (json.dumps({"stop": "x" * 1_000_000}).encode(), 400),
    "a bias of ids that are none": (
        json.dumps({"logit_bias": {str(i): 1 for i in range(100_000)}}).encode(),
        400,
    ),
    "a bias of everything": (
        json.dumps({"logit_bias": {str(i): 1e30 for i in range(1024)}, "max_tokens": 1}).encode(),
        200,
    ),
    "a prompt of 1 MB": (json.dumps({"prompt": "word " * 200_000}).encode(), 400),
    "129 prompts": (json.dumps({"prompt": ["a"] * 129}).encode(), 400),
    "a million prompts": (json.dumps({"prompt": ["a"] * 1_000_000}).encode(), 400),
    "a million ids": (json.dumps({"prompt": [1] * 1_000_000}).encode(), 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_hostile_body_is_answered_and_no_more(port: int, name: str) -> None:
    body, status = BODIES[name]
    answer = ask(port, URL, body)
    assert answer.status == status, answer.body[:500]
    if status != 200:
        assert 0 < len(answer.error) < 1000


@pytest.mark.parametrize(
    "value", [10**400, -(10**400), [[]], {"a": {}}, True], ids=lambda v: str(v)[:5]
)
def test_no_field_takes_what_it_cannot_mean(port: int, value: Any) -> None:
    for name in KNOWN:
        if value is True and name in ("echo", "stream", "ignore_eos"):
            continue
        if value == {"a": {}} and name == "json_schema":
            continue
        answer = ask(port, URL, {"max_tokens": 1} | {name: value})
        assert answer.status == 400, name
        assert name in answer.error or answer.json["error"]["param"] == name


def test_a_large_body_may_come_in_one_piece_with_its_headers(port: int) -> None:
    body = json.dumps({"prompt": "word " * 40_000}).encode()
    for _ in range(5):
        with connect(port) as connection:
            head = HEAD.replace(b"/v1/completions", b"/tokenize")
            connection.sendall(
                head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert statuses(until_closed(connection)) == [200]


def test_a_number_without_a_fraction_is_a_whole_one(port: int) -> None:
    answer = ask(port, URL, b'{"prompt": [1.0, 2e0], "max_tokens": 2.0, "stop_token_ids": [0.0]}')
    assert (answer.status, answer.json["usage"]["prompt_tokens"]) == (200, 2)
    assert ask(port, "/detokenize", b'{"tokens": [1.0]}').status == 200


def test_a_field_without_a_name_is_unknown(port: int) -> None:
    assert ask(port, "/tokenize", {"prompt": "a", "": 1}).status == 400


def test_what_leaves_no_token_is_a_wrong_request(port: int) -> None:
    answer = ask(port, URL, {"prompt": "a", "repetition_penalty": 5e-324})
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/health", URL])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "POST", "GET"])
def test_another_method_is_not_possible_there(port: int, path: str, method: str) -> None:
    if (path, method) in ((URL, "POST"), ("/health", "GET")):
        return
    answer = ask(port, path, method=method)
    assert answer.status == 405
    assert set(answer.headers["allow"].split(", ")) == (
        {"POST"} if path == URL else {"HEAD", "GET"}
    )


def test_head_is_get_without_a_body(port: int) -> None:
    answer = ask(port, "/health", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_a_websocket_is_not_opened(port: int) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with connect(port) as connection:
        connection.sendall(HEALTH[:-2] + upgrade + b"Sec-WebSocket-Key: AAAA\r\n\r\n\x81\x05hello")
        connection.shutdown(socket.SHUT_WR)
        assert statuses(until_closed(connection)) == [200]


def test_requests_in_one_piece_are_answered_in_their_order(port: int) -> None:
    body = b'{"prompt": "O,", "max_tokens": 3, "seed": 1}'
    post = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = HEALTH[:-2] + b"Connection: close\r\n\r\n"
    answer = exchange(port, HEALTH + post + b"GET /none HTTP/1.1\r\n\r\n" + post + last)
    assert statuses(answer) == [200, 200, 404, 200, 200]
    assert answer.count(b'"text_completion"') == 2


def test_a_body_longer_than_announced_is_no_part_of_the_request(port: int) -> None:
    body = b'{"prompt": "O,", "max_tokens": 1}'
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    assert statuses(exchange(port, head + body + b"and more\r\n\r\n"))[-1] == 400


def test_a_body_that_breaks_off_is_forgotten(bard: LoadedModel) -> None:
    lines: list[str] = []
    with here(bard) as (port, server):
        for app in _layers(server):
            if isinstance(app, guard.Log):
                app._write = lines.append
        for cut in (HEAD + b"Content-Length: 100\r\n\r\n{", CHUNKED + b"5\r\n{"):
            with connect(port) as connection:
                connection.sendall(cut)
        until(lambda: len(lines) == 2)
        assert all(", the client has gone" in line for line in lines), lines
        assert ask(port, "/health").status == 200


def _layers(server: Server) -> Iterator[Any]:
    app: Any = server.config.app
    while app is not None:
        yield app
        app = getattr(app, "_app", None)


def test_a_body_without_end_is_refused_when_it_is_too_large(port: int) -> None:
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    answer = exchange(port, CHUNKED, *[chunk] * 12)
    assert statuses(answer) == [413]
    assert error_in(answer) == "the body may have up to 8 MB"
    announced = exchange(port, HEAD + b"Content-Length: 8388609\r\n\r\n")
    assert statuses(announced) == [413]


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "headers": (HEALTH[:-2], b"X-Header: value\r\n" * 4096),
    "one header": (HEALTH[:-2] + b"X-Header: ", b"x" * 65536),
    "a name": (HEALTH[:-2], b"x" * 65536),
    "a path": (b"GET /", b"x" * 65536),
    "trailers": (CHUNKED + b"1\r\n{\r\n0\r\n", b"X-Header: value\r\n" * 4096),
    "one trailer": (CHUNKED + b"1\r\n{\r\n0\r\nX-Header: ", b"x" * 65536),
}


@pytest.mark.parametrize("name", FLOODS)
def test_headers_without_end_are_not_read_to_their_end(port: int, name: str) -> None:
    head, more = FLOODS[name]
    with connect(port) as connection, suppress(ConnectionError):
        connection.sendall(head)
        for _ in range(2_000):  # 131 MB
            connection.sendall(more)
        pytest.fail("all of it was read")


@pytest.mark.parametrize(
    ("head", "more"), [(b"GET /health HTTP/1.1\r\nX-Slow: ", b"x"), (b"", b"\r\n"), (b"", b"")]
)
def test_who_sends_headers_slowly_is_given_up(port: int, head: bytes, more: bytes) -> None:
    with patch.object(protocol, "SECONDS", 0.3), connect(port) as connection:
        connection.sendall(head)
        answer = _drip(connection, more, port)
    assert statuses(answer) == [408]
    assert "no request has come within" in error_in(answer)


def test_who_sends_a_body_slowly_is_given_up(port: int) -> None:
    with patch.object(guard, "BODY_SECONDS", 0.3), connect(port) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        answer = _drip(connection, b" ", port)
    assert statuses(answer) == [408]
    assert error_in(answer) == "the body has not come in time"


def _drip(connection: socket.socket, data: bytes, port: int) -> bytes:
    """Send a byte now and then until there is an answer; others are answered meanwhile."""
    connection.settimeout(0.05)
    for _ in range(100):
        with suppress(TimeoutError):
            return until_closed(connection)
        assert ask(port, "/health").status == 200
        with suppress(ConnectionError):
            connection.sendall(data)
    raise AssertionError("it was never given up")


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_a_killed_server_leaves_its_place_to_another(kind: str, tmp_path: Path) -> None:
    if kind == "port":
        with socket.create_server(("127.0.0.1", 0)) as free:
            where = ["--port", str(free.getsockname()[1])]
    else:
        where = ["--uds", str(tmp_path / "gpt2.sock")]
    for _ in range(2):
        with command(*where) as server, _reach(where) as connection:
            connection.sendall(HEALTH)
            assert statuses(connection.recv(1 << 16)) == [200]
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(10)


def _reach(where: list[str]) -> socket.socket:
    if where[0] == "--port":
        return connect(int(where[1]))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(where[1])
    return connection


def test_who_never_reads_a_stream_is_given_up_and_holds_nobody_up(bard: LoadedModel) -> None:
    body = json.dumps({"stream": True, "n": 16, "max_tokens": 250, "logprobs": 20}).encode()
    with (
        here(bard) as (port, server),
        patch.object(engines, "_UNREAD", 100),
        socket.socket() as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        engine = server.service.engine
        assert engine is not None
        until(lambda: engine.open == 16)
        assert ask(port, URL, {"prompt": "O,", "max_tokens": 5}).status == 200
        until(lambda: engine.open == 0)
        [connection] = [c for c in server.server_state.connections if c.flow.write_paused]
        assert connection.transport.get_write_buffer_size() < 1 << 20


HOSTILE: dict[str, dict[str, Any]] = {
    "repetitions": {"regex": "(a{1,1000}){1,1000}"},
    "alternatives": {"regex": "|".join("a" * i + "b" for i in range(1, 1500))},
    "choices": {"choice": [f"{i} text here" for i in range(20_000)]},
    "an ambiguous grammar": {"grammar": 'start: a\na: a a | "x" | "xx" | "xxx"'},
    "many properties": {
        "json_schema": {
            "type": "object",
            "properties": {f"p{i}": {"type": "string", "maxLength": 1000} for i in range(1500)},
        }
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_holds_nobody_up(port: int, name: str) -> None:
    hostile, waits = Asking(port, max_tokens=20, ignore_eos=False, **HOSTILE[name]), []
    while hostile.is_alive():
        begun = time.monotonic()
        assert ask(port, URL, {"prompt": "O,", "max_tokens": 1}).status == 200
        waits.append(time.monotonic() - begun)
    assert hostile.result().status in (200, 400)
    assert max(waits) < 2
