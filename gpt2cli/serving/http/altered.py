"""The model that is served under interventions, and the texts that it then writes.

It is another one, on the PyTorch decoder, with an engine of its own: what it computes holds up
none of the other texts but for the processor's time.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from gpt2cli.api import LoadedModel
from gpt2cli.config.interventions import Interventions
from gpt2cli.generation.scheduler import Scheduler
from gpt2cli.serving.http.engine import Engine
from gpt2cli.serving.reference import Reference

MOST_AT_ONCE = 16  # texts, whose KV cache is reserved


class Altered:
    """The engine of the last plan that was asked for, until there is another one.

    Whoever uses it holds the `lock`.
    """

    def __init__(self, model: LoadedModel, reference: Reference) -> None:
        self.lock = asyncio.Lock()
        self._model, self._reference = model, reference
        self._altered, self._plan = model, Interventions()
        self._engine: Engine | None = None

    async def open(self, plan: Interventions) -> tuple[LoadedModel, Engine]:
        """The model under a plan. Raises `GPT2CLIError` for one that cannot be carried out."""
        if self._engine is None or self._engine.error is not None or plan != self._plan:
            model, scheduler = await asyncio.to_thread(self._change, plan)
            if self._engine is not None:
                self._engine.stop()
            self._altered, self._plan = model, plan
            self._engine = Engine(scheduler, 0, lambda: None)
            self._engine.start()
        return self._altered, self._engine

    def _change(self, plan: Interventions) -> tuple[LoadedModel, Scheduler]:
        model = self._model.under(plan)
        network = self._reference.network() if model.precision == "fp32" else None
        return model, model.scheduler(MOST_AT_ONCE, network=network)


class Holding:
    """An answer that keeps a lock until it is sent. An ASGI application."""

    def __init__(self, app: ASGIApp, lock: asyncio.Lock) -> None:
        self._app, self._lock = app, lock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and let go."""
        try:
            await self._app(scope, receive, send)
        finally:
            self._lock.release()
