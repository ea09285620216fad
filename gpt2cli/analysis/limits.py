"""Speeds, and what part they are of what the memory allows.

Every new token needs all weights and the KV cache once, so decoding cannot be faster than the
memory's bandwidth divided by those bytes (Pope et al. 2022, arXiv:2211.05102, section 2).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2cli.analysis.load import Load
from gpt2cli.analysis.timing import Measurement, Plan
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.pages import PAGE
from gpt2cli.system import estimate


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the ends of repeated measurements."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Decoding:
    """How fast tokens were written: tokens/s, all sequences together.

    A step reads `bytes_per_step` from memory. The limit is the speed at which the memory could do
    no more. The share is None where a step's bytes fit a cache, which then does the memory's work.
    """

    decode_tokens_per_second: Spread
    bytes_per_step: int
    limit_tokens_per_second: float
    share_of_limit: float | None


@dataclass(frozen=True, slots=True)
class Result(Decoding):
    """The result at one context, of all samples."""

    context: int
    prefill_tokens_per_second: Spread


@dataclass(frozen=True, slots=True)
class LoadResult(Decoding):
    """The result of so many sequences, and of a prompt that comes in while they decode.

    `gap_s` is the usual time between two tokens of a sequence, `longest_gap_s` that meanwhile.
    """

    sequences: int
    gap_s: Spread
    prompt: int
    time_to_first_token_s: Spread
    longest_gap_s: Spread


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of one kind: each writes `tokens` tokens and reads `bytes`; `per_second` by round."""

    tokens: int
    bytes: int
    per_second: tuple[float, ...]

    @property
    def traffic(self) -> float:
        """Bytes per second in the fastest round."""
        return self.bytes * max(self.per_second)

    def fits(self, cache: int | None) -> bool:
        """Whether a cache of so many bytes holds all that a step reads."""
        return self.bytes <= (cache or 0)

    def decoding(self, speed: float, cache: int | None) -> tuple[Spread, int, float, float | None]:
        """The fields of `Decoding`, from a memory read at `speed` bytes/s."""
        decode = spread([self.tokens * rate for rate in self.per_second])
        limit = self.tokens * speed / self.bytes
        return decode, self.bytes, limit, None if self.fits(cache) else decode.median / limit


def steps_of(measurement: Measurement, config: ModelConfig, precision: str, samples: int) -> Steps:
    """The steps after one context; samples share the full pages of their prompt."""
    context, tokens = measurement.context, measurement.tokens
    shared = context // PAGE * PAGE if samples > 1 else 0
    # Step i reads i keys more than the first; the middle one stands for all.
    own = context - shared + (tokens + 1) // 2
    return Steps(
        samples,
        estimate.step_weight_bytes(config, precision, samples)
        + estimate.kv_cache_bytes(config, precision, shared + samples * own),
        tuple(tokens / seconds for seconds in measurement.decode_seconds),
    )


def loaded_steps(
    loads: Sequence[Load], count: int, tokens: int, config: ModelConfig, precision: str
) -> Steps:
    """The steps of so many sequences."""
    held = int(statistics.median(each.held for each in loads)) + count * ((tokens + 1) // 2)
    return Steps(
        count,
        estimate.step_weight_bytes(config, precision, count)
        + estimate.kv_cache_bytes(config, precision, held),
        tuple(tokens / each.decode_seconds for each in loads),
    )


def judge(
    measurement: Measurement,
    config: ModelConfig,
    precision: str,
    samples: int,
    speed: float,
    cache: int | None = None,
) -> Result:
    """Speeds of a measurement, and their share of what memory read at `speed` bytes/s allows.

    `precision` is a key of `system.precision.PRECISIONS`; `cache` counts the bytes that need not
    come from memory.
    """
    return Result(
        *steps_of(measurement, config, precision, samples).decoding(speed, cache),
        context=measurement.context,
        prefill_tokens_per_second=spread(
            [measurement.context / seconds for seconds in measurement.prefill_seconds]
        ),
    )


def judge_load(
    loads: Sequence[Load], steps: Steps, plan: Plan, speed: float, cache: int | None
) -> LoadResult:
    """The same of so many sequences."""
    return LoadResult(
        *steps.decoding(speed, cache),
        sequences=steps.tokens,
        gap_s=spread([each.decode_seconds / plan.tokens for each in loads]),
        prompt=plan.contexts[-1],
        time_to_first_token_s=spread([each.first_token_seconds for each in loads]),
        longest_gap_s=spread([each.longest_gap_seconds for each in loads]),
    )
