"""What a server makes of bytes that are no HTTP, are too many, too slow, or not read."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from connections import CHUNKED, HEAD, HEALTH, connect, error_in, exchange, statuses, until_closed
from servers import URL, ask, command, here, until

from gpt2cli.api import LoadedModel
from gpt2cli.serving.http import engine as engines
from gpt2cli.serving.http import guard, protocol
from gpt2cli.serving.http.server import Server


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


def test_a_large_body_may_come_in_one_piece_with_its_headers(port: int) -> None:
    body = json.dumps({"prompt": "word " * 40_000}).encode()
    for _ in range(5):
        with connect(port) as connection:
            head = HEAD.replace(b"/v1/completions", b"/tokenize")
            connection.sendall(
                head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            assert statuses(until_closed(connection)) == [200]


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
