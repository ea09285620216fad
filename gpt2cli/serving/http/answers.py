"""Answers to requests for completions: whole, or token by token as server-sent events.

Both watch the connection while they write: a client that goes away takes its texts with it, at
once, and disturbs nobody (the rest of a batch computes on).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gpt2cli.errors import GPT2CLIError
from gpt2cli.files import to_json
from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import Event
from gpt2cli.serving.choices import Lister, choices_of, completion, finish_reason, usage
from gpt2cli.serving.http.engine import Job
from gpt2cli.serving.http.errors import json_response, response_to, why_it_ended
from gpt2cli.serving.http.service import Service, Work

_SSE = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold tokens back
}
END = b"data: [DONE]\n\n"
_CHOICES = b'"choices":[]'  # of which a chunk has one: no text in JSON has quotes as they are


class Whole:
    """An answer that is sent when all of its texts have ended. An ASGI application."""

    def __init__(self, service: Service, work: Work, job: Job) -> None:
        self._service, self._work, self._job = service, work, job
        self._texts = Texts(service, work, job)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write all texts, then answer."""
        async with watched(self._texts, scope, receive):
            response: Response
            try:
                async for news in self._texts.news():
                    deque(news, maxlen=0)
                if self._job.is_closed:
                    return
                response = json_response(await self._body())
            except GPT2CLIError as error:
                response = response_to(error)
            if not self._job.is_closed:
                self._job.close()
                await response(scope, receive, send)

    async def _body(self) -> Any:
        tokenizer = self._service.model.tokenizer
        choices: list[dict[str, Any]] = []
        for part, found in zip(self._work.parts, self._texts.found, strict=True):
            choices += choices_of(found, part.answer, part.window, tokenizer, len(choices))
        return self._texts.head(choices, self._texts.usage())


class Events(ABC):
    """An answer that is sent as its texts are written, as events. An ASGI application."""

    def __init__(self, service: Service, work: Work, job: Job) -> None:
        self._service, self._work, self._job = service, work, job
        self._texts = Texts(service, work, job)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer step by step."""
        async with watched(self._texts, scope, receive):
            has_begun = False
            try:
                async for news in self._texts.news():
                    data = self._told(news)
                    if not has_begun:
                        await send(stream_start())
                        has_begun = True
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except GPT2CLIError as error:
                self._job.close()
                if not has_begun:
                    await response_to(error)(scope, receive, send)
                    return
                await send(stream_end(event_of(why_it_ended(error))))
                return
            if not self._job.is_closed:
                self._job.close()
                await send(stream_end(self._last()))

    @abstractmethod
    def _told(self, news: Iterator[tuple[int, Event]]) -> bytes:
        """What a step has brought, each with its prompt's number."""

    @abstractmethod
    def _last(self) -> bytes:
        """The end."""


class Stream(Events):
    """The same as OpenAI has it, a chunk per token."""

    def __init__(self, service: Service, work: Work, job: Job) -> None:
        super().__init__(service, work, job)
        tokenizer = service.model.tokenizer
        self._listers = [[Lister(tokenizer) for _ in part.samples] for part in work.parts]
        # Chunks differ in their choice alone, so the rest is written once.
        chunk = self._texts.head([], None)
        if not work.request.usage_at_the_end:
            del chunk["usage"]
        before, _, after = event_of(chunk).partition(_CHOICES)
        self._before, self._after = before + _CHOICES[:-1], b"]" + after

    def _told(self, news: Iterator[tuple[int, Event]]) -> bytes:
        return b"".join(chunk for one in news for chunk in self._chunks(*one))

    def _chunks(self, prompt: int, event: Event) -> Iterator[bytes]:
        """What one more token of a sample adds."""
        part = self._work.parts[prompt]
        found, sample = self._texts.found[prompt], event.sample
        is_echoed = self._work.request.is_echoing or not part.answer.asked
        if is_echoed and found.samples[sample].count == 1:
            yield self._echo(prompt, sample)
        if part.answer.asked:
            yield self._chunk(
                prompt,
                sample,
                event.text,
                self._listed(prompt, sample, event),
                finish_reason(event.finish_reason),
            )

    def _echo(self, prompt: int, sample: int) -> bytes:
        """The prompt, before its first token; all there is if none was asked for."""
        part, found = self._work.parts[prompt], self._texts.found[prompt]
        listed = None
        if found.prompt_logprobs:
            pairs = zip(part.window, found.prompt_logprobs, strict=True)
            listed = self._listers[prompt][sample].echo(pairs, part.answer.echo)
        reason = None if part.answer.asked else "length"
        return self._chunk(prompt, sample, part.answer.echo, listed, reason)

    def _listed(self, prompt: int, sample: int, event: Event) -> dict[str, Any] | None:
        if event.logprob is None:
            return None
        return self._listers[prompt][sample].list([(event.logprob.id, event.logprob)])

    def _chunk(self, prompt: int, sample: int, text: str, listed: Any, reason: str | None) -> bytes:
        choice = {
            "index": prompt * len(self._work.parts[prompt].samples) + sample,
            "text": text,
            "logprobs": listed,
            "finish_reason": reason,
            "seed": self._texts.found[prompt].seed,
        }
        if self._work.request.usage_in_each:
            return event_of(self._texts.head([choice], self._texts.usage()))
        return self._before + to_json(choice) + self._after

    def _last(self) -> bytes:
        """Usage, if it was asked for, and the end."""
        wanted = self._work.request.usage_at_the_end
        usage = event_of(self._texts.head([], self._texts.usage())) if wanted else b""
        return usage + END


class Texts:
    """The texts of a request as they become, and what is counted of them."""

    def __init__(self, service: Service, work: Work, job: Job) -> None:
        self._service, self._work, self._job = service, work, job
        self._left = job.texts
        self.found = [Completion(i, p.config.seed, len(p.window)) for i, p in enumerate(work.parts)]
        for part, found in zip(work.parts, self.found, strict=True):
            found.samples = [Sample() for _ in part.samples]
        self._name = f"cmpl-{uuid4().hex}"
        self._created = int(time.time())
        self._prompt_tokens = sum(len(part.window) for part in work.parts)
        self.count = 0  # tokens generated
        self.first: float | None = None

    async def news(self) -> AsyncIterator[Iterator[tuple[int, Event]]]:
        """Each time's events, until all texts have ended or the job is closed.

        There may be several of one text, so each counts only when it is taken, and all must be.
        Raises the `GPT2CLIError` that ends one of them.
        """
        while self._left and (news := await self._job.news()):
            yield (self._add(*one) for one in news)

    def _add(self, prompt: int, what: Any) -> tuple[int, Event]:
        if isinstance(what, GPT2CLIError):
            raise what
        self.first = self.first or time.monotonic()
        found = self.found[prompt]
        found.add(what)
        self.count += self._work.parts[prompt].answer.asked
        self._left -= what.finish_reason is not None
        return prompt, what

    def usage(self) -> dict[str, int]:
        """The tokens so far."""
        return usage(self._prompt_tokens, self.count)

    def head(self, choices: list[dict[str, Any]], usage: Any) -> dict[str, Any]:
        """An answer, or a chunk of it."""
        model = self._service.model.name
        found = completion(self._name, self._created, model, choices, usage)
        return found | {"system_fingerprint": self._service.fingerprint}

    def observe(self, scope: Scope) -> None:
        """Tell the metrics, and the log by the scope's state, what was done."""
        metrics, now = self._service.metrics, time.monotonic()
        metrics.prompt_tokens.inc(self._prompt_tokens)
        metrics.completion_tokens.inc(self.count)
        state = scope["state"]
        state["prompt_tokens"], state["completion_tokens"] = self._prompt_tokens, self.count
        if self.first is None:
            return
        begun = state["begun"]
        state["first"] = self.first - begun
        metrics.first_token.observe(self.first - begun)
        metrics.seconds.observe(now - begun)
        if (steps := self.count / self._job.texts - 1) > 0:
            metrics.token.observe((now - self.first) / steps)


@asynccontextmanager
async def watched(texts: Texts, scope: Scope, receive: Receive) -> AsyncIterator[None]:
    """Close the job as soon as the client goes, and in the end; then count what was done."""
    job = texts._job
    gone = asyncio.create_task(_until_gone(receive, job, scope))
    try:
        yield
    finally:
        gone.cancel()
        job.close()
        texts.observe(scope)


async def _until_gone(receive: Receive, job: Job, scope: Scope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not job.is_closed:
        scope["state"]["gone"] = True
        job.close()


def stream_start() -> Message:
    """The beginning of a stream of events."""
    headers = [(name.encode(), value.encode()) for name, value in _SSE.items()]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def stream_end(data: bytes) -> Message:
    """Its last part."""
    return {"type": "http.response.body", "body": data, "more_body": False}


def event_of(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(data) + b"\n\n"
