"""What the endpoints of a server share: its model, its limits, and requests made ready to write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2cli.api import LoadedModel
from gpt2cli.errors import UsageError, shown
from gpt2cli.files import decode_utf8, load_json
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.sequence import Sequence
from gpt2cli.serving import completions
from gpt2cli.serving.choices import Answer
from gpt2cli.serving.completions import MOST_TOKENS, Request
from gpt2cli.serving.http.engine import PROMPT_TOKENS, Engine
from gpt2cli.serving.http.metrics import Metrics
from gpt2cli.serving.reference import Reference

MOST_TEXTS = 128  # of one request
BATCH_TOKENS = 128  # a step of them takes a few times as long as one of a few decodes


class Unknown(UsageError):
    """A model that is not the one that is served."""


@dataclass(frozen=True)
class Part:
    """One prompt of a request: what the model reads, and the samples that continue it."""

    window: list[int]
    config: GenerationConfig
    answer: Answer
    samples: list[Sequence]


@dataclass(frozen=True)
class Work:
    """A request that can be written."""

    request: Request
    parts: list[Part]


class Service:
    """A model that is served, from the moment when it is asked for: `engine` is None until open."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_sequences: int | None = None,
        queue: int = 256,
        processes: int = 1,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.model, self.metrics = model, Metrics()
        self.reference = Reference(model)
        self.created = int(time.time())
        self.engine: Engine | None = None
        self._max_sequences, self._queue, self._broken = max_sequences, queue, broken
        self._processes = processes

    def open(self) -> Engine:
        """Read the weights. → an engine that is to be started"""
        scheduler = self.model.scheduler(
            self._max_sequences,
            BATCH_TOKENS,
            prompt_tokens=sum(PROMPT_TOKENS) // 2,
            processes=self._processes,
        )
        return Engine(scheduler, self._queue, self._broken)

    @property
    def names(self) -> list[str]:
        """What the model may be called, its own name first."""
        source = self.model.source
        aliases = source.spec.aliases if source.spec else (Path(source.name).name,)
        return list(dict.fromkeys(n for n in (source.name, *aliases, source.repo_id) if n))

    @cached_property
    def fingerprint(self) -> str:
        """What decides about the texts besides a request: another one may give others."""
        facts = self.model.facts()
        parts = [facts[name] for name in ("version", "engine", "precision")]
        parts += [f"{a.directory.name}={a.weight:g}" for a in self.model.adapters]
        return "-".join(parts)

    def check_name(self, name: str) -> None:
        """Raise `Unknown` for another model."""
        if name not in self.names:
            raise Unknown(
                f"the model {shown(name)} is not served here, but {' or '.join(self.names)}",
                "model",
            )

    def prepare(self, body: bytes, engine: Engine) -> Work:
        """Read the body of a request. May take long, and needs no event loop.

        Raises `GPT2CLIError` for one that cannot be served.
        """
        given = parse(body)
        request = completions.read(given, {"max_tokens"})
        self.check_name(given.get("model") or self.model.name)
        count = len(request.prompts) * request.settings["samples"]
        if count > MOST_TEXTS:
            raise UsageError(f"prompts times n may be up to {MOST_TEXTS} texts, not {count}", "n")
        return Work(request, [self._part(request, i, engine) for i in range(len(request.prompts))])

    def _part(self, request: Request, i: int, engine: Engine) -> Part:
        prompt = request.prompts[i]
        ids = self.model.ids(prompt)
        room = max(1, self.model.config.context_length - len(ids))
        usual = {"max_tokens": min(MOST_TOKENS, room), "overflow": "error"}
        window, config = self.model.prepare(ids, {**usual, **request.settings})
        samples = engine.scheduler.prepare(window, config)
        return Part(window, config, request.answer_to(prompt, self.model.tokenizer), samples)

    def describe(self) -> dict[str, Any]:
        """The model as OpenAI's list has it, and what clients ask of others."""
        return {
            "id": self.model.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gpt2cli",
            "aliases": self.names[1:],
            "max_model_len": self.model.config.context_length,
        }


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises `UsageError` for anything else."""
    try:
        found = load_json(decode_utf8(body, "the body"), whole=True)
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"the body must be a JSON object, not {shown(found)}")
    return found


def only(body: Mapping[str, Any], *names: str) -> None:
    """Raise `UsageError` for a field of another name."""
    for name in body:
        if name not in names:
            raise UsageError(f"unknown field {shown(name)}; there are {', '.join(names)}")
