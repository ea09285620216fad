"""The page's endpoints that look into the model, and change it there.

A computation has a thread to itself and its turn: one at a time, in the order of the requests, so
that texts are written on meanwhile. A client that goes gives up its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive

from gpt2cli.serving.http import guard
from gpt2cli.serving.http.errors import json_response
from gpt2cli.serving.http.service import Service, parse
from gpt2cli.serving.insight import Insight

PREFIX = "/page/v1/"
_T = TypeVar("_T")
Endpoint = Callable[[Request], Awaitable[Any]]


def routes(service: Service, opened: Callable[[Endpoint], Endpoint]) -> list[Route]:
    """Where they are found; `opened` makes one that answers every way to be wrong."""
    insight, turns = Insight(service.model, service.reference), Turns()

    def answering(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            body = parse(await guard.read_body(request.receive))
            return json_response(await turns.take(lambda: work(body), request.receive))

        return opened(endpoint)

    return [
        Route(PREFIX + work.__name__, answering(work), methods=["POST"])
        for work in (insight.inspect, insight.attention, insight.effect)
    ]


class Turns:
    """Who computes: one at a time, in the order in which they came."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._threads = ThreadPoolExecutor(1, "insight")

    async def take(self, work: Callable[[], _T], receive: Receive) -> _T:
        """What `work` finds, in a thread. Raises `Gone` if the client does not wait for it."""
        found = asyncio.create_task(self._take(work))
        gone = asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait((found, gone), return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                raise guard.Gone
            return found.result()
        finally:
            gone.cancel()
            found.cancel()

    async def _take(self, work: Callable[[], _T]) -> _T:
        await self._turn.acquire()
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        running.add_done_callback(lambda _: self._turn.release())  # not before, whoever has gone
        return await asyncio.shield(running)


async def until_gone(receive: Receive) -> None:
    """Wait until a client has gone whose request is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
