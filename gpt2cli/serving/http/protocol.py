"""uvicorn's HTTP/1.1 with bounds on what comes before a request: how much, and how slowly.

uvicorn bounds neither with httptools, so that a connection which sends a header line now and then
stays for good, and one that never ends them takes all memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gpt2cli.files import to_json
from gpt2cli.serving.completions import error

MOST_BYTES = 64 << 10  # of a request line and its headers
SECONDS = 30.0  # for them to come


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_between = True  # requests, or within the headers of one
        self._bytes = 0  # of headers that are not complete
        self._too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read some bytes."""
        if self._is_between:
            self._wait()
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > MOST_BYTES and not self.transport.is_closing():
            self._refuse(431, f"a request may begin with up to {MOST_BYTES >> 10} kB of headers")

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._is_between, self._bytes = False, 0
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, whose size is the application's concern."""
        self._bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect another request, as soon as its first bytes come."""
        self._is_between, self._bytes = True, 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is no valid HTTP request")

    def _wait(self) -> None:
        if self._too_late is None:
            self._bytes = 0
            self._too_late = self.loop.call_later(SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"no request has come within {SECONDS:.0f} s")

    def _refuse(self, status: int, message: str) -> None:
        body = to_json(error(message, "invalid_request_error"))
        self.transport.write(
            STATUS_LINE[status] + b"content-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()
