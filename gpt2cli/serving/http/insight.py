"""The page's endpoints that look into the model, and change it there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gpt2cli.errors import GPT2CLIError
from gpt2cli.progress import Advance
from gpt2cli.serving.http import guard
from gpt2cli.serving.http.answers import END, event_of, stream_end, stream_start
from gpt2cli.serving.http.endpoint import PAGE, Endpoint, opened
from gpt2cli.serving.http.errors import json_response, response_to, why_it_ended
from gpt2cli.serving.http.page_answers import named
from gpt2cli.serving.http.service import Service, parse
from gpt2cli.serving.http.turns import Turns, until_gone
from gpt2cli.serving.insight import Body, Insight, Patches
from gpt2cli.text.tokenizer import Tokenizer

_STEP_SECONDS = 0.05  # between two words about how far it is


def routes(service: Service) -> list[Route]:
    """Where they are found."""
    found = _Endpoints(service)
    insight = found.insight
    at_once = {
        "inspect": insight.inspect,
        "lens": insight.lens,
        "attention": insight.attention,
        "head": insight.head,
        "effect": insight.effect,
    }
    posts = {name: found.answering(work) for name, work in at_once.items()}
    posts["patch"] = found.patch
    return [
        *(Route(PAGE + n, opened(service, of), methods=["POST"]) for n, of in posts.items()),
        Route(f"{PAGE}heads", opened(service, found.heads), methods=["GET"]),
    ]


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self.insight, self._turns = Insight(service.model, service.reference), Turns()
        self._model = service.model

    def answering(self, work: Callable[[Body, Advance], dict[str, Any]]) -> Endpoint:
        """The endpoint of a question that is answered at once."""

        async def endpoint(request: Request) -> Response:
            body = parse(await guard.read_body(request.receive))

            def answer(advance: Advance) -> Response:
                return json_response(_named(work(body, advance), self._model.tokenizer))

            return await self._turns.take(answer, request.receive)

        return endpoint

    async def patch(self, request: Request) -> Any:
        """Patch place by place, as events."""
        body = parse(await guard.read_body(request.receive))
        patches = await self._turns.take(
            lambda advance: self.insight.patch(body, advance), request.receive
        )
        return Patching(self._turns, patches, self._model.tokenizer)

    async def heads(self, request: Request) -> Response:
        """Which heads are of which kind."""
        work = self.insight.heads
        return json_response(await self._turns.take_long(work, lambda _: None))


def _named(data: Any, tokenizer: Tokenizer) -> Any:
    """The same with the bytes of tokens where their text does not say them."""
    if isinstance(data, dict):
        if {"id", "text"} <= data.keys():
            data = data | named(data["id"], tokenizer)
        return {name: _named(value, tokenizer) for name, value in data.items()}
    if isinstance(data, list) and data and isinstance(data[0], dict | list):
        return [_named(value, tokenizer) for value in data]
    return data


class Patching:
    """An answer that tells how far the patches are, and then what they restore. ASGI.

    A client that goes ends them after the next.
    """

    def __init__(self, turns: Turns, patches: Patches, tokenizer: Tokenizer) -> None:
        self._turns, self._patches, self._tokenizer = turns, patches, tokenizer
        self._news: asyncio.Queue[int | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self._done, self._told = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer step by step."""
        gone = asyncio.create_task(until_gone(receive))
        loop = asyncio.get_running_loop()
        work = self._turns.take_long(self._patches.run, lambda count: self._advance(count, loop))
        computing = asyncio.create_task(work)
        for task in (gone, computing):
            task.add_done_callback(lambda _: self._news.put_nowait(None))
        try:
            has_begun = False
            while (done := await self._news.get()) is not None:
                if not has_begun:
                    await send(stream_start())
                    has_begun = True
                data = event_of({"done": done, "of": self._patches.total})
                await send({"type": "http.response.body", "body": data, "more_body": True})
            if not computing.done():
                scope["state"]["gone"] = True
                return
            await self._end(computing, has_begun, (scope, receive, send))
        finally:
            self._stopped.set()
            gone.cancel()
            computing.cancel()

    async def _end(
        self,
        computing: asyncio.Task[dict[str, Any]],
        has_begun: bool,
        connection: tuple[Scope, Receive, Send],
    ) -> None:
        """What has been found, or why not."""
        send = connection[-1]
        try:
            result = {"result": _named(computing.result(), self._tokenizer)}
        except GPT2CLIError as error:
            if not has_begun:
                await response_to(error)(*connection)
                return
            result = why_it_ended(error)
        if not has_begun:
            await send(stream_start())
        await send(stream_end(event_of(result) + (b"" if "error" in result else END)))

    def _advance(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread that patches."""
        if self._stopped.is_set():
            raise guard.Gone
        self._done += count
        is_last, now = self._done == self._patches.total, time.monotonic()
        if count and (is_last or now - self._told > _STEP_SECONDS):
            self._told = now
            loop.call_soon_threadsafe(self._news.put_nowait, self._done)
