"""The page's endpoints to write with: scores, candidates, rules, continuations.

They go through the same scheduler as all texts, so they share what it has read, wait for their
turn, and give their place up when the client goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import numpy as np
from starlette.requests import Request
from starlette.routing import Route

from gpt2cli.analysis import scoring
from gpt2cli.api import LoadedModel
from gpt2cli.arrays import NDArray
from gpt2cli.config.interventions import Interventions
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.generation.next_logits import NextLogits
from gpt2cli.generation.record import Completion
from gpt2cli.generation.request import MOST_LOGPROBS, ChosenLogprob, Event, GenerationConfig
from gpt2cli.generation.sequence import Sequence
from gpt2cli.sampling.rules import largest_ids
from gpt2cli.sampling.sampler import Stage
from gpt2cli.serving import completions
from gpt2cli.serving.choices import Answer
from gpt2cli.serving.completions import MOST_TOKENS
from gpt2cli.serving.http import guard
from gpt2cli.serving.http.altered import Altered, Holding
from gpt2cli.serving.http.answers import END, Events, Whole, event_of
from gpt2cli.serving.http.asked import (
    ROOT,
    SETTINGS,
    check_fields,
    named,
    plan_of,
    prompt_of,
    whole_of,
)
from gpt2cli.serving.http.endpoint import opened
from gpt2cli.serving.http.engine import Engine, Job
from gpt2cli.serving.http.errors import json_response
from gpt2cli.serving.http.service import MOST_TEXTS, Part, Service, Work, parse
from gpt2cli.text.tokenizer import Tokenizer

MOST_CANDIDATES = 1000
MOST_WINDOWS = 16  # of the context, half of it apart, that a text to score may fill
_UNASKED = Answer(asked=False)  # of texts that only end
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
        Route(f"{ROOT}model", opened(service, found.model), methods=["GET"]),
        *(Route(ROOT + n, opened(service, of), methods=["POST"]) for n, of in posts.items()),
    ]


class Writing:
    """The endpoints of a service."""

    def __init__(self, service: Service) -> None:
        self._service, self._altered = service, Altered(service.model)

    async def model(self, request: Request) -> Any:
        """The model, and what the page needs to know of it."""
        return json_response(await asyncio.to_thread(describe, self._service.model))

    async def score(self, request: Request) -> Any:
        """The tokens of a text, each with what the model thought of it."""
        body, engine = await self._asked(request)
        check_fields(body, "prompt", "top")
        top = whole_of(body, "top", 10, 0, MOST_LOGPROBS)
        ids = await asyncio.to_thread(prompt_of, body, self._service.model)
        context = self._service.model.config.context_length
        windows = list(scoring.windows(len(ids), context, scoring.default_stride(context)))
        if len(windows) > MOST_WINDOWS:
            raise UsageError(f"{len(ids):,} tokens are too many to score on a page", "prompt")
        config = GenerationConfig(SamplingConfig(temperature=0), 1, prompt_logprobs=top)
        texts = [ids[w.begin : w.end] for w in windows] or [ids]
        parts = [
            Part(text, config, _UNASKED, engine.scheduler.prepare(text, config)) for text in texts
        ]

        def make(found: list[Completion]) -> dict[str, Any]:
            judged = found[0].prompt_logprobs[:1]
            for window, one in zip(windows, found, strict=False):
                judged += one.prompt_logprobs[window.first - window.begin :]
            tokenizer = self._service.model.tokenizer
            return {"tokens": [_judged(*each, tokenizer) for each in zip(ids, judged, strict=True)]}

        return self._whole(engine, parts, make)

    async def next(self, request: Request) -> Any:
        """The logits of the best tokens after a text, before any rule."""
        body, engine = await self._asked(request)
        check_fields(body, "prompt", "top")
        top = whole_of(body, "top", MOST_CANDIDATES, 1, MOST_CANDIDATES)
        ids = await asyncio.to_thread(prompt_of, body, self._service.model)
        reader = self._reader(ids, engine)
        tokenizer = self._service.model.tokenizer
        return self._whole(
            engine, [_read_by(reader)], lambda _: candidates(reader.logits, top, tokenizer)
        )

    async def stages(self, request: Request) -> Any:
        """What each rule of sampling does to the next token's candidates."""
        body, engine = await self._asked(request)
        check_fields(body, "prompt", "prompt_length", "top", *SETTINGS)
        model = self._service.model
        top = whole_of(body, "top", 5, 1, MOST_CANDIDATES)
        ids = await asyncio.to_thread(prompt_of, body, model)
        length = whole_of(body, "prompt_length", len(ids), 0, len(ids))
        reader = self._reader(ids, engine)
        length = max(1, length - len(ids) + len(reader.ids))
        sequence = await asyncio.to_thread(_followed, reader.ids, length, body, model, engine)

        def make(_: list[Completion]) -> dict[str, Any]:
            stages = sequence.sampler.explain(reader.logits[None], sequence.ids, top)
            return {"stages": [_stage(stage, model.tokenizer) for stage in stages]}

        return self._whole(engine, [_read_by(reader)], make)

    async def continued(self, request: Request) -> Any:
        """Continue a text, as events."""
        body, engine = await self._asked(request)
        check_fields(body, "prompt", "top", "plan", *SETTINGS)
        whole_of(body, "top", 0, 0, MOST_LOGPROBS)
        plan, model = plan_of(body), self._service.model
        if plan:
            return await self._under(plan, body)
        part = await asyncio.to_thread(_continued, body, model, engine)
        return self._stream(part, engine, model)

    async def _under(self, plan: Interventions, body: Mapping[str, Any]) -> Any:
        """The same with the model changed; one request at a time, and each its own plan."""
        lock = self._altered.lock
        await lock.acquire()
        try:
            model, engine = await self._altered.open(plan)
            part = await asyncio.to_thread(_continued, body, model, engine)
            return Holding(self._stream(part, engine, model), lock)
        except BaseException:
            lock.release()
            raise

    async def _asked(self, request: Request) -> tuple[dict[str, Any], Engine]:
        body = parse(await guard.read_body(request.receive))
        engine = self._service.engine
        assert engine is not None  # or `opened` would not have let it through
        engine.check_room()
        return body, engine

    def _reader(self, ids: list[int], engine: Engine) -> NextLogits:
        model = self._service.model
        return NextLogits(model.tokenizer, engine.scheduler.decoder.context_length, model.fit(ids))

    def _whole(self, engine: Engine, parts: list[Part], make: Make) -> Whole:
        work, job = _submitted(engine, parts)
        return _Computed(self._service, work, job, make)

    def _stream(self, part: Part, engine: Engine, model: LoadedModel) -> Events:
        work, job = _submitted(engine, [part])
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
            "token": None if id_ is None else _judged(id_, event.logprob, tokenizer),
            "finish_reason": event.finish_reason,
        }

    def _last(self) -> bytes:
        seed = self._work.parts[0].config.seed
        return event_of({"done": True, "seed": seed, "facts": self._facts}) + END


def describe(model: LoadedModel) -> dict[str, Any]:
    """What the page needs to know of a model."""
    config = model.config
    names = ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
    return {
        "name": model.name,
        "description": model.describe(),
        "config": {name: getattr(config, name) for name in names},
        "size": model.tokenizer.size,
        "end_of_text": model.tokenizer.end_of_text,
        "sampling": asdict(model.sampling),
        "facts": model.facts(),
        "unchangeable": _unchangeable(model),
        "limits": {"candidates": MOST_CANDIDATES, "texts": MOST_TEXTS, "patches": 0},
    }


def _unchangeable(model: LoadedModel) -> str | None:
    try:
        model.under(Interventions())
    except GPT2CLIError as error:
        return str(error)
    return None


def candidates(logits: NDArray, top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The best tokens by their logits, and what the others weigh. (V,)"""
    best, exact = largest_ids(logits, top), logits.astype(np.float64)
    weights = np.exp(exact - exact.max())
    total = weights.sum()
    log_total = float(np.log(total) + exact.max())
    return {
        "candidates": [named(i, tokenizer) | {"logit": float(exact[i])} for i in best],
        "log_total": log_total,
        "entropy": float(log_total - (weights / total) @ exact),
        "size": len(logits),
    }


def _submitted(engine: Engine, parts: list[Part]) -> tuple[Work, Job]:
    request = completions.Request([], {}, _UNASKED)
    return Work(request, parts), engine.submit([part.samples for part in parts])


def _read_by(reader: NextLogits) -> Part:
    return Part(reader.ids, reader.config, _UNASKED, [reader])


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


def _continued(body: Mapping[str, Any], model: LoadedModel, engine: Engine) -> Part:
    """The samples of a body, ready to be written."""
    ids = prompt_of(body, model)
    config = _settings(body, model, len(ids))
    if config.samples > MOST_TEXTS:
        raise UsageError(f"n may be up to {MOST_TEXTS}, not {config.samples}", "n")
    config = replace(config, logprobs=whole_of(body, "top", 10, 0, MOST_LOGPROBS))
    window = model.fit(ids, config.max_tokens, body.get("overflow") or "slide")
    return Part(window, config, Answer(), engine.scheduler.prepare(window, config))


def _followed(
    ids: list[int], length: int, body: Mapping[str, Any], model: LoadedModel, engine: Engine
) -> Sequence:
    """A text of which the first `length` tokens are the prompt, as far as it was written."""
    config = _settings(body, model, length)
    context = engine.scheduler.decoder.context_length
    sequence = Sequence(model.tokenizer, context, ids[:length], config)
    sequence.follow(ids[length:])
    return sequence


def _stage(stage: Stage, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [named(i, tokenizer) | {"before": b, "after": a} for i, b, a in stage.top]
    return {"rule": stage.rule, "candidates": stage.candidates, "top": top}


def _judged(token_id: int, found: ChosenLogprob | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token, and what the model thought of it."""
    top = found.top if found else ()
    return named(token_id, tokenizer) | {
        "logprob": found and found.logprob,
        "rank": found and found.rank,
        "top": [named(one.id, tokenizer) | {"logprob": one.logprob} for one in top],
    }
