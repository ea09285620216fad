"""Connections to a server, on which bytes are sent as they are."""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


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
