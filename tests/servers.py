"""Servers to send requests to: the command in a process of its own, or one in a thread."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socket import socket
from typing import Any

from gpt2cli.api import LoadedModel
from gpt2cli.errors import GPT2CLIError
from gpt2cli.serving.http.address import Address
from gpt2cli.serving.http.server import Server
from gpt2cli.serving.http.settings import Options

URL = "/v1/completions"
JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    """A response: its status, its headers in lower case, its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """What is wrong, from OpenAI's error object, which has all of its fields."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["message"])

    @property
    def chunks(self) -> list[Any]:
        """What a stream held, up to its [DONE], which must be there."""
        events = self.body.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def ask(
    port: int,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> Answer:
    """Send one request: a GET, or a POST of JSON (bytes are sent as they are)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    named = (JSON if body is not None else {}) | (headers or {})
    connection.request(method or ("GET" if body is None else "POST"), path, data, named)
    response = connection.getresponse()
    found = Answer(
        response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    )
    connection.close()
    return found


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


@dataclass
class Command:
    """`gpt2 serve` in a process; `lines` is what it has said on stderr so far."""

    process: subprocess.Popen[bytes]
    port: int = 0
    lines: list[str] = field(default_factory=list)

    def ask(self, path: str, body: Any = None, **details: Any) -> Answer:
        """`ask` of this server."""
        return ask(self.port, path, body, **details)

    def complete(self, **body: Any) -> Answer:
        """A request for completions."""
        return self.ask(URL, body)

    def _read(self, ready: threading.Event) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))
            if match := re.search(r"at http://[^ ]*:(\d+); Ctrl-C", self.lines[-1]):
                self.port = int(match[1])
            if "try: curl" in self.lines[-1]:
                ready.set()
        ready.set()


@contextmanager
def command(
    *options: str, env: dict[str, str] | None = None, new_group: bool = False
) -> Iterator[Command]:
    """`gpt2 serve` with bard unless another model is named, ready; killed in the end.

    `new_group` makes its process lead a group, to which signals can be sent.
    """
    model = () if "-m" in options else ("-m", "bard")
    port = () if "--port" in options or "--uds" in options else ("--port", "0")
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", "serve", *model, *port, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=new_group,
    )
    found, ready = Command(process), threading.Event()
    reader = threading.Thread(target=found._read, args=(ready,), daemon=True)
    reader.start()
    try:
        assert ready.wait(60)
        assert process.poll() is None, found.lines
        yield found
    finally:
        process.kill()
        process.wait()
        reader.join(10)


@contextmanager
def here(
    model: LoadedModel, *, fetch: Callable[[], None] | None = None, **options: Any
) -> Iterator[tuple[int, Server]]:
    """A server in a thread of this process: its port, and the server itself.

    It is ready, unless there is a `fetch` that it has to wait for.
    """
    listener = Address(port=0).bind()
    ready = threading.Event()
    chosen = Options(**options)
    server = Server(model, chosen, fetch=fetch or (lambda: None), ready=ready.set)
    server.signals = ()
    thread = threading.Thread(target=_run, args=(server, listener), daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    try:
        assert fetch or ready.wait(60), server.failure
        yield port, server
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()


def _run(server: Server, listener: socket) -> None:
    with suppress(GPT2CLIError):  # it is `failure`
        server.run([listener])


@contextmanager
def begun(port: int, **body: Any) -> Iterator[http.client.HTTPConnection]:
    """A request for completions whose answer is not awaited; its client goes in the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", URL, json.dumps(body), JSON)
    try:
        yield connection
    finally:
        connection.close()


def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.005)
