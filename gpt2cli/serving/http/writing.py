"""The page's endpoints to write with: scores, candidates, rules, continuations.

They go through the same scheduler as all texts, so they share what it has read, wait for their
turn, and give their place up when the client goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from starlette.requests import Request
from starlette.routing import Route

from gpt2cli.analysis import scoring
from gpt2cli.api import LoadedModel
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.generation.next_logits import NextLogits
from gpt2cli.generation.record import Completion
from gpt2cli.generation.request import MOST_LOGPROBS, Event, GenerationConfig
from gpt2cli.generation.sequence import Sequence
from gpt2cli.serving import completions
from gpt2cli.serving.asked import Asked
from gpt2cli.serving.choices import Answer
from gpt2cli.serving.completions import MOST_TOKENS
from gpt2cli.serving.http import guard
from gpt2cli.serving.http.altered import Altered, Holding
from gpt2cli.serving.http.answers import END, Events, Whole, event_of
from gpt2cli.serving.http.endpoint import PAGE, opened
from gpt2cli.serving.http.engine import Engine, Job
from gpt2cli.serving.http.errors import json_response
from gpt2cli.serving.http.page_answers import (
    MOST_CANDIDATES,
    candidates,
    describe,
    judged,
    stage_of,
)
from gpt2cli.serving.http.service import MOST_TEXTS, Part, Service, Work, parse

MOST_WINDOWS = 16  # of the context, half of it apart, that a text to score may fill
# Fields of a completion that say how its answer looks mean nothing here.
_ELSEWHERE = ("model", "user", "suffix", "stream", "stream_options", "best_of", "echo", "logprobs")
SETTINGS = tuple(name for name in completions.KNOWN if name not in (*_ELSEWHERE, "prompt"))
_ENDING = Answer(asked=False)  # of texts that are only read
Make: TypeAlias = "Callable[[list[Completion]], dict[str, Any]]"


def routes(service: Service) -> list[Route]:
    """What is found where."""
    found = Writing(service)
    posts = {
        "score": found.score,
        "next": found.next,
        "stages": found.stages,
        "continue": found.continued,
    }
    return [
        Route(f"{PAGE}model", opened(service, found.model), methods=["GET"]),
        *(Route(PAGE + n, opened(service, of), methods=["POST"]) for n, of in posts.items()),
    ]


class Writing:
    """The endpoints of a service."""

    def __init__(self, service: Service) -> None:
        self._service, self._model = service, service.model
        self._altered = Altered(service.model, service.reference)

    async def model(self, request: Request) -> Any:
        """The model, and what the page needs to know of it."""
        return json_response(await asyncio.to_thread(describe, self._model))

    async def score(self, request: Request) -> Any:
        """The tokens of a text, each with what the model thought of it."""
        body, engine = await self._asked(request)
        parts, make = await asyncio.to_thread(_scored, body, self._model, engine)
        return self._whole(engine, parts, make)

    async def next(self, request: Request) -> Any:
        """The logits of the best tokens after a text, before any rule."""
        body, engine = await self._asked(request)
        asked = Asked(body, self._model, "prompt", "top")
        top = asked.whole("top", MOST_CANDIDATES, 1, MOST_CANDIDATES)
        reader = _reader(await asyncio.to_thread(asked.text), self._model)
        tokenizer = self._model.tokenizer
        return self._whole(
            engine,
            [_read_by(reader)],
            lambda _: candidates(reader.logits, top, reader.ids, tokenizer),
        )

    async def stages(self, request: Request) -> Any:
        """What each rule of sampling does to the next token's candidates."""
        body, engine = await self._asked(request)
        reader, make = await asyncio.to_thread(_staged, body, self._model)
        return self._whole(engine, [_read_by(reader)], make)

    async def continued(self, request: Request) -> Any:
        """Continue a text, as events; under a plan one text at a time."""
        body, engine = await self._asked(request)
        asked = Asked(body, self._model, "prompt", "top", "plan", *SETTINGS)
        window, config = await asyncio.to_thread(_continued, asked, body, self._model)
        plan = await asyncio.to_thread(asked.plan, window)
        if not plan:
            return await self._stream(window, config, self._model, engine)
        lock = self._altered.lock
        await lock.acquire()
        try:
            model, engine = await self._altered.open(plan)
            model.fit(window, config.max_tokens)  # or it says that positions would move
            return Holding(await self._stream(window, config, model, engine), lock)
        except BaseException:
            lock.release()
            raise

    async def _asked(self, request: Request) -> tuple[dict[str, Any], Engine]:
        body = parse(await guard.read_body(request.receive))
        engine = self._service.engine
        assert engine is not None  # or `opened` would not have let it through
        engine.check_room()
        return body, engine

    def _whole(self, engine: Engine, parts: list[Part], make: Make) -> Whole:
        work, job = _submitted(engine, parts)
        return _Computed(self._service, work, job, make)

    async def _stream(
        self, window: list[int], config: GenerationConfig, model: LoadedModel, engine: Engine
    ) -> Events:
        # A grammar may take its time.
        samples = await asyncio.to_thread(engine.scheduler.prepare, window, config)
        work, job = _submitted(engine, [Part(window, config, Answer(), samples)])
        return _Continued(self._service, work, job, model.facts())


class _Computed(Whole):
    """What is made of texts that have been read."""

    def __init__(self, service: Service, work: Work, job: Job, make: Make) -> None:
        super().__init__(service, work, job)
        self._make = make

    async def _body(self) -> Any:
        return await asyncio.to_thread(self._make, self._texts.found)


class _Continued(Events):
    """The tokens of all samples, step by step."""

    def __init__(self, service: Service, work: Work, job: Job, facts: dict[str, Any]) -> None:
        super().__init__(service, work, job)
        self._facts = facts

    def _told(self, news: Iterator[tuple[int, Event]]) -> bytes:
        return event_of({"news": [self._one(event) for _, event in news]})

    def _one(self, event: Event) -> dict[str, Any]:
        id_, tokenizer = event.token_id, self._service.model.tokenizer
        return {
            "sample": event.sample,
            "token": None if id_ is None else judged(id_, event.logprob, tokenizer),
            "finish_reason": event.finish_reason,
        }

    def _last(self) -> bytes:
        seed = self._work.parts[0].config.seed
        return event_of({"done": True, "seed": seed, "facts": self._facts}) + END


def _submitted(engine: Engine, parts: list[Part]) -> tuple[Work, Job]:
    request = completions.Request([], {}, _ENDING)
    return Work(request, parts), engine.submit([part.samples for part in parts])


def _reader(ids: list[int], model: LoadedModel) -> NextLogits:
    return NextLogits(model.tokenizer, model.config.context_length, model.fit(ids))


def _read_by(reader: NextLogits) -> Part:
    return Part(reader.ids, reader.config, _ENDING, [reader])


def _scored(body: Mapping[str, Any], model: LoadedModel, engine: Engine) -> tuple[list[Part], Make]:
    """What is to be read of a text that is scored, window by window, and what is made of it."""
    asked = Asked(body, model, "prompt", "top")
    top, ids = asked.whole("top", 10, 0, MOST_LOGPROBS), asked.text()
    context = model.config.context_length
    windows = list(scoring.windows(len(ids), context, scoring.default_stride(context)))
    if len(windows) > MOST_WINDOWS:
        raise UsageError(f"the text has {len(ids):,} tokens, too many to score at once", "prompt")
    config = GenerationConfig(SamplingConfig(temperature=0), 1, prompt_logprobs=top)
    texts = [ids[w.begin : w.end] for w in windows] or [ids]
    parts = [Part(t, config, _ENDING, engine.scheduler.prepare(t, config)) for t in texts]

    def make(found: list[Completion]) -> dict[str, Any]:
        scores = found[0].prompt_logprobs[:1]
        for window, one in zip(windows, found, strict=False):
            scores += one.prompt_logprobs[window.first - window.begin :]
        pairs = zip(ids, scores, strict=True)
        return {"tokens": [judged(*each, model.tokenizer) for each in pairs]}

    return parts, make


def _staged(body: Mapping[str, Any], model: LoadedModel) -> tuple[NextLogits, Make]:
    """What is to be read for the stages of sampling, and what is made of it."""
    asked = Asked(body, model, "prompt", "prompt_length", "top", *SETTINGS)
    top, ids = asked.whole("top", 5, 1, MOST_CANDIDATES), asked.text()
    length = asked.whole("prompt_length", len(ids), 0, len(ids))
    reader = _reader(ids, model)
    length = max(1, length - len(ids) + len(reader.ids))
    config = _settings(body, model, length)
    sequence = Sequence(model.tokenizer, model.config.context_length, reader.ids[:length], config)
    sequence.follow(reader.ids[length:])

    def make(_: list[Completion]) -> dict[str, Any]:
        stages = sequence.sampler.explain(reader.logits[None], sequence.ids, top)
        return {"stages": [stage_of(stage, model.tokenizer) for stage in stages]}

    return reader, make


def _continued(
    asked: Asked, body: Mapping[str, Any], model: LoadedModel
) -> tuple[list[int], GenerationConfig]:
    """What the model reads of a prompt, and how that is continued."""
    ids = asked.text()
    config = replace(
        _settings(body, model, len(ids)), logprobs=asked.whole("top", 10, 0, MOST_LOGPROBS)
    )
    if config.samples > MOST_TEXTS:
        raise UsageError(f"n may be up to {MOST_TEXTS}, not {config.samples}", "n")
    return model.fit(ids, config.max_tokens, body.get("overflow") or "slide"), config


def _settings(body: Mapping[str, Any], model: LoadedModel, count: int) -> GenerationConfig:
    """The settings of a body for a prompt of `count` tokens; null switches a rule off."""
    request = completions.read({name: body[name] for name in SETTINGS if name in body})
    room = max(1, model.config.context_length - count)
    settings = {"max_tokens": min(MOST_TOKENS, room)} | dict(request.settings)
    settings.pop("overflow", None)
    config = model.configure(**settings)
    usual = SamplingConfig()
    off = {name: getattr(usual, name) for name in asdict(usual) if body.get(name, 0) is None}
    return replace(config, sampling=replace(config.sampling, **off))
