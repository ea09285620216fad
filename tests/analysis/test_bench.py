"""Measurements with a made-up decoder and clock, so that all sums can be done by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from helpers import ScriptedDecoder, certain

from gpt2cli.analysis import bench
from gpt2cli.analysis.bench import Measurement, Plan, Spread
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import shipped_specs
from gpt2cli.decoders.pages import Chunk
from gpt2cli.errors import UsageError
from gpt2cli.system.device import Placement
from gpt2cli.system.machine import cpu_name

SMALL = {spec.name: spec.model for spec in shipped_specs()}["124M"]
CPU = Placement("cpu", "fp32")
VOCABULARY = 11


class TimedDecoder(ScriptedDecoder):
    """Needs a made-up time for everything: `prefill` seconds per token, `step` seconds per step.

    The length of the text is the most probable id.
    """

    def __init__(self, prefill: Sequence[float], step: float) -> None:
        super().__init__(
            lambda _, text: certain(len(text) % VOCABULARY, VOCABULARY), 64, size=VOCABULARY
        )
        self.now = 0.0
        self._prefill, self._step = iter(prefill), step

    def clock(self) -> float:
        return self.now

    @property
    def prompts(self) -> list[Sequence[int]]:
        """What was read from the beginning."""
        return [chunk.ids for chunks in self.reads for chunk in chunks if chunk.start == 0]

    @property
    def steps(self) -> list[list[int]]:
        """What was read of all sequences, one token of each."""
        return [[i for c in chunks for i in c.ids] for chunks in self.reads if chunks[0].start]

    def read(self, chunks: Sequence[Chunk]) -> Any:
        begins = chunks[0].start == 0
        self.now += next(self._prefill) * len(chunks[0].ids) if begins else self._step
        return super().read(chunks)


# What is measured.


@pytest.mark.parametrize(
    ("context_length", "contexts"),
    [(1024, (32, 512, 896)), (256, (32, 128, 206)), (32, (16, 24)), (2, (1,))],
)
def test_contexts_are_chosen_to_fit(context_length: int, contexts: tuple[int, ...]) -> None:
    plan = bench.make_plan(context_length, ())
    assert plan.contexts == contexts
    assert plan.contexts[-1] + plan.tokens <= context_length


def test_contexts_that_are_given_are_sorted_and_measured_once() -> None:
    plan = bench.make_plan(64, [40, 3, 40], tokens=24, repeats=2, samples=5)
    assert plan == Plan(contexts=(3, 40), tokens=24, repeats=2, samples=5)


@pytest.mark.parametrize(
    ("contexts", "given", "message"),
    [
        ([0], {}, "context must be at least 1, not 0"),
        ([], {"tokens": 0}, "tokens must be at least 1"),
        ([], {"repeats": 0}, "repeats must be at least 1"),
        ([], {"samples": -1}, "samples must be at least 1, not -1"),
        ([], {"tokens": 64}, "64 tokens leave no room"),
        ([41], {"tokens": 24}, "give at most context 40"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    contexts: list[int], given: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bench.make_plan(64, contexts, **given)


# How it is measured.


def test_times_are_those_of_the_decoder_without_the_first_round() -> None:
    # Rounds of two contexts each: the first is slow, as cold weights are.
    decoder = TimedDecoder(prefill=[9, 9, 1, 1, 3, 3, 2, 2], step=0.5)
    plan = Plan(contexts=(4, 8), tokens=3, repeats=3, samples=2)
    advanced: list[int] = []
    timings = bench.run(decoder, VOCABULARY, plan, lambda: advanced.append(1), decoder.clock)
    assert timings.first_prefill_seconds == 9 * 4
    assert timings.measurements == (
        Measurement(4, 3, (4, 12, 8), (1.5, 1.5, 1.5)),
        Measurement(8, 3, (8, 24, 16), (1.5, 1.5, 1.5)),
    )
    assert len(advanced) == plan.measurements == 8


def test_contexts_take_turns_with_the_same_prompts_each_round() -> None:
    decoder = TimedDecoder(prefill=[1] * 6, step=1)
    bench.run(decoder, VOCABULARY, Plan((4, 8), 1, 2, 1), clock=decoder.clock)
    prompts = decoder.prompts
    assert [len(prompt) for prompt in prompts] == [4, 8] * 3
    assert prompts[:2] == prompts[2:4] == prompts[4:]
    assert all(0 <= i < VOCABULARY for prompt in prompts for i in prompt)
    assert len({i for prompt in prompts for i in prompt}) > 1


def test_decoding_is_greedy_and_feeds_back_what_was_chosen() -> None:
    decoder = TimedDecoder(prefill=[1] * 2, step=1)
    bench.run(decoder, VOCABULARY, Plan((4,), 3, 1, 2), clock=decoder.clock)
    assert decoder.steps == [[4, 4], [5, 5], [6, 6]] * 2
    assert [len(prompt) for prompt in decoder.prompts] == [4] * 2  # once for both
    assert decoder.free_pages == decoder.pages


# What it comes to.


def test_spread_of_an_even_number_is_between_the_two_in_the_middle() -> None:
    assert bench.spread([4.0, 1.0, 2.0, 8.0]) == Spread(3.0, 1.0, 8.0)


def test_speeds_and_limit_by_hand() -> None:
    config = ModelConfig(10, context_length=64, emb_dim=4, n_heads=2, n_layers=1, qkv_bias=True)
    # Head 10 · 4, matrices 12 · 4 · 4, biases 12 + 4 + 16 + 4, three norms of 2 · 4, a position.
    weights = 4 * (40 + 192 + 36 + 24 + 4)
    cache = 4 * 2 * 4 * (30 + 5)  # keys and values of 4 numbers; tokens 31 to 39 after 30, so 35
    measurement = Measurement(30, 9, (3.0, 1.0, 2.0), (9.0, 3.0, 4.5))
    result = bench.judge(measurement, config, "fp32", 1, speed=4.0 * (weights + cache))
    assert result.bytes_per_step == weights + cache
    assert result.prefill_tokens_per_second == Spread(15.0, 10.0, 30.0)
    assert result.decode_tokens_per_second == Spread(2.0, 1.0, 3.0)
    assert result.limit_tokens_per_second == 4.0
    assert result.share_of_limit == 0.5


@pytest.mark.parametrize(
    ("cache", "seconds", "share"),
    [(None, 1.0, 0.5), (499, 1.0, 0.5), (500, 1.0, None), (None, 0.4, None), (0, 0.5, 1.0)],
)
def test_a_share_is_only_one_of_memory(
    monkeypatch: pytest.MonkeyPatch, cache: int | None, seconds: float, share: float | None
) -> None:
    monkeypatch.setattr(bench.estimate, "step_weight_bytes", lambda *_: 400)
    monkeypatch.setattr(bench.estimate, "kv_cache_bytes", lambda *_: 100)
    measurement = Measurement(4, 1, (1.0,), (seconds,))
    result = bench.judge(measurement, SMALL, "fp32", 1, speed=1000, cache=cache)
    assert (result.limit_tokens_per_second, result.share_of_limit) == (2.0, share)


def test_a_batch_shares_the_weights_and_full_pages_of_the_prompt() -> None:
    measurement = Measurement(99, 1, (1.0,), (0.5,))
    one, ten = (bench.judge(measurement, SMALL, "fp32", n, speed=40e9) for n in (1, 10))
    assert ten.bytes_per_step - one.bytes_per_step == 9 * (100 - 3 * 32) * 73_728
    assert ten.decode_tokens_per_second.median == 20
    assert ten.limit_tokens_per_second == pytest.approx(10 * 40e9 / ten.bytes_per_step)
    assert one.limit_tokens_per_second == pytest.approx(79.7, abs=0.1)  # 40 GB/s ÷ 502 MB


def test_a_model_is_measured_from_its_decoder_to_its_share(tiny_config: ModelConfig) -> None:
    decoder = TimedDecoder(prefill=[1] * 4, step=1)
    plan = Plan((4, 8), 2, 1, 1)
    report = bench.measure(decoder, tiny_config, CPU, plan)
    assert [result.context for result in report.contexts] == [4, 8]
    for result in report.contexts:
        limit = report.bandwidth_bytes_per_second / result.bytes_per_step
        assert result.limit_tokens_per_second == pytest.approx(limit)
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_bytes > 10e6  # an interpreter alone takes more
    assert report.device_name == cpu_name() != ""
