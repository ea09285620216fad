"""What a server counts, for Prometheus (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from gpt2cli.serving.http.engine import Engine

_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # where the processes of one server count together
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(name, about, registry=registry, multiprocess_mode="livesum")

        self.requests = Counter(
            "gpt2_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter("gpt2_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.completion_tokens = Counter(
            "gpt2_completion_tokens", "Tokens generated.", registry=registry
        )
        self.first_token = Histogram(
            "gpt2_time_to_first_token_seconds",
            "From a request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.token = Histogram(
            "gpt2_time_per_token_seconds",
            "Between the tokens of a text, on average per request.",
            buckets=_TOKEN,
            registry=registry,
        )
        self.seconds = Histogram(
            "gpt2_request_seconds",
            "From a request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._gauges = (
            gauge("gpt2_waiting_texts", "Texts in the queue."),
            gauge("gpt2_running_texts", "Texts being written."),
            gauge("gpt2_kv_cache_pages", "Pages of the KV cache."),
            gauge("gpt2_kv_cache_free_pages", "Pages of the KV cache that are free."),
        )
        self._state = (0, 0, 0, 0)  # that they show

    def show(self, engine: Engine | None) -> bytes:
        """All of them as text, in the format of Prometheus."""
        if engine is not None:
            self.observe(engine)
        if _SHARED not in os.environ:
            return generate_latest(self._registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)

    def observe(self, engine: Engine) -> None:
        """Take the state of an engine."""
        scheduler = engine.scheduler
        running = min(engine.open, scheduler.running)
        decoder = scheduler.decoder
        state = engine.open - running, running, decoder.pages, decoder.free_pages
        if state != self._state:
            self._state = state
            for gauge, value in zip(self._gauges, state, strict=True):
                gauge.set(value)
