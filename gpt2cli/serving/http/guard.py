"""Who may ask what: keys, hosts, origins, kinds and sizes of bodies; and a line per request.

Plain ASGI, because middleware that reads and writes for the endpoints hides a client's going.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2cli.serving.http import page
from gpt2cli.serving.http.errors import failure
from gpt2cli.serving.http.metrics import Metrics
from gpt2cli.serving.http.settings import Policy

MOST_BYTES = 8 << 20  # of a body
BODY_SECONDS = 30.0  # for all of it


class TooLarge(Exception):
    """A body that is larger than `MOST_BYTES`."""


class TooSlow(Exception):
    """A body that has not come within `BODY_SECONDS`."""


class Gone(Exception):
    """A client that has gone before its request was whole."""


class Guard:
    """Refuses what the policy forbids, and lets the rest through to `app`."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app, self._policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, hosts = Headers(scope=scope), self._policy.hosts
        if hosts and _host(headers.get("host", "")) not in hosts:
            return failure(403, f"this server answers as {hosts[0]} only")
        if self._policy.key is not None and not is_open(scope["path"]):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            known = hmac.compare_digest(key.strip().encode("latin-1"), self._policy.key.encode())
            if not (known and scheme.lower() == "bearer"):
                reason = "the key is wrong" if key else "a key is needed"
                return failure(
                    401,
                    f"{reason}: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        return None


def is_open(path: str) -> bool:
    """Whether it needs no key: the page has to be there to ask for one."""
    return path == "/health" or path in page.files()


def refuse_body(headers: Headers) -> Response | None:
    """The refusal of a body by its headers alone."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page cannot send that without asking first
        return failure(415, "the body must be JSON: send Content-Type: application/json")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MOST_BYTES:
        return too_large()
    return None


def too_large() -> Response:
    """The refusal of a large body, of which nothing more is read."""
    message = f"the body may have up to {MOST_BYTES >> 20} MB"
    return failure(413, message, headers={"connection": "close"})


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


async def read_body(receive: Receive) -> bytes:
    """All of a request's body. Raises `TooLarge`, `TooSlow` or `Gone`."""
    try:
        return await asyncio.wait_for(_read_body(receive), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise TooSlow from None


async def _read_body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            raise TooLarge
        if not message.get("more_body"):
            return b"".join(parts)


class Log:
    """Says for each request what was asked, and what became of it; counts them by their `paths`.

    Every response gets an `x-request-id`, the client's own if it sends a short one.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: Collection[str],
        write: Callable[[str], object],
        *,
        as_json: bool,
    ) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths
        self._write, self._as_json = write, as_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 0
        state = scope.setdefault("state", {})
        state["begun"] = begun
        name = _request_id(Headers(scope=scope))

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            status = 499 if state.get("gone") or not status else status
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._tell(scope, status, time.monotonic() - begun, name)

    def _tell(self, scope: Scope, status: int, seconds: float, name: str) -> None:
        state = scope["state"]
        client = scope.get("client")
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "client": client[0] if client else "socket",
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "prompt_tokens": state.get("prompt_tokens"),
            "completion_tokens": state.get("completion_tokens"),
            "first_token_seconds": None if "first" not in state else round(state["first"], 4),
            "request_id": name,
        }
        self._write(json.dumps(facts) if self._as_json else _in_words(facts))


def _in_words(facts: dict[str, Any]) -> str:
    path = quote(facts["path"])  # which may hold whatever makes a line look like another
    words = f"{facts['time'][11:19]} {facts['client']} {facts['method']} {path} {facts['status']}"
    if facts["completion_tokens"] is not None:
        words += f", {facts['prompt_tokens']} + {facts['completion_tokens']} tokens"
    if facts["first_token_seconds"] is not None:
        words += f", first after {1000 * facts['first_token_seconds']:.0f} ms"
    gone = ", the client has gone" if facts["status"] == 499 else ""
    return f"{words}, {1000 * facts['seconds']:.0f} ms{gone}"


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    is_usable = 0 < len(given) <= 128 and given.isascii() and given.isprintable()
    return given if is_usable else uuid4().hex
