"""Measurements with a made-up decoder and clock, so that all sums can be done by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from helpers import ScriptedDecoder, certain

from gpt2cli.analysis import bench, limits, timing
from gpt2cli.analysis.limits import Spread
from gpt2cli.analysis.load import Load
from gpt2cli.analysis.timing import Measurement, Plan
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import shipped_specs
from gpt2cli.decoders.pages import Chunk
from gpt2cli.errors import UsageError
from gpt2cli.system import bandwidth
from gpt2cli.system.device import Placement
from gpt2cli.system.machine import cpu_name

SMALL = {spec.name: spec.model for spec in shipped_specs()}["124M"]
CPU = Placement("cpu", "fp32")
VOCABULARY = 11


@pytest.fixture(autouse=True)
def little_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is not asked here, and it takes its time."""
    monkeypatch.setattr(bandwidth, "CPU_BUFFER", 1 << 20)
    monkeypatch.setattr(bandwidth.machine, "cache_size", lambda: 1 << 20)


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
    plan = timing.make_plan(context_length, ())
    assert plan.contexts == contexts
    assert plan.contexts[-1] + plan.tokens <= context_length


def test_contexts_that_are_given_are_sorted_and_measured_once() -> None:
    plan = timing.make_plan(64, [40, 3, 40], tokens=24, repeats=2, samples=5)
    assert plan == Plan(contexts=(3, 40), tokens=24, repeats=2, samples=5)


@pytest.mark.parametrize(
    ("contexts", "given", "message"),
    [
        ([0], {}, "context must be at least 1, not 0"),
        ([], {"tokens": 0}, "tokens must be at least 1"),
        ([], {"repeats": 0}, "repeats must be at least 1"),
        ([], {"samples": -1}, "samples must be at least 1, not -1"),
        ([], {"sequences": [4, 0]}, "sequences must be at least 1, not 0"),
        ([], {"sequences": [1, 900]}, "900 sequences at once come to .* give fewer sequences"),
        ([], {"tokens": 64}, "64 tokens leave no room"),
        ([41], {"tokens": 24}, "give at most context 40"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    contexts: list[int], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        timing.make_plan(64, contexts, **given)


# How it is measured.


def test_times_are_those_of_the_decoder_without_the_first_round() -> None:
    # Rounds of two contexts each: the first is slow, as cold weights are.
    decoder = TimedDecoder(prefill=[9, 9, 1, 1, 3, 3, 2, 2], step=0.5)
    plan = Plan(contexts=(4, 8), tokens=3, repeats=3, samples=2)
    advanced: list[int] = []
    timings = timing.run(decoder, VOCABULARY, plan, lambda: advanced.append(1), decoder.clock)
    assert timings.first_prefill_seconds == 9 * 4
    assert timings.measurements == (
        Measurement(4, 3, (4, 12, 8), (1.5, 1.5, 1.5)),
        Measurement(8, 3, (8, 24, 16), (1.5, 1.5, 1.5)),
    )
    assert len(advanced) == plan.measurements == 8


def test_contexts_take_turns_with_the_same_prompts_each_round() -> None:
    decoder = TimedDecoder(prefill=[1] * 6, step=1)
    timing.run(decoder, VOCABULARY, Plan((4, 8), 1, 2, 1), clock=decoder.clock)
    prompts = decoder.prompts
    assert [len(prompt) for prompt in prompts] == [4, 8] * 3
    assert prompts[:2] == prompts[2:4] == prompts[4:]
    assert all(0 <= i < VOCABULARY for prompt in prompts for i in prompt)
    assert len({i for prompt in prompts for i in prompt}) > 1


def test_decoding_is_greedy_and_feeds_back_what_was_chosen() -> None:
    decoder = TimedDecoder(prefill=[1] * 2, step=1)
    timing.run(decoder, VOCABULARY, Plan((4,), 3, 1, 2), clock=decoder.clock)
    assert decoder.steps == [[4, 4], [5, 5], [6, 6]] * 2
    assert [len(prompt) for prompt in decoder.prompts] == [4] * 2  # once for both
    assert decoder.free_pages == decoder.pages


class Crowd:
    """A `Writer` whose every text needs one step to be read."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []
        self.texts: list[int] = []

    def add(self, prompt: Sequence[int]) -> int:
        self.prompts.append(list(prompt))
        self.texts.append(len(self.prompts))
        return len(self.prompts)

    def step(self) -> list[int]:
        return list(self.texts)

    def cancel(self, number: int) -> None:
        self.texts.remove(number)


def test_sequences_take_their_turn_and_each_late_prompt_is_new() -> None:
    crowd = Crowd()
    plan = Plan((4, 8), 1, 2, 1, sequences=(1, 2))
    decoder = TimedDecoder(prefill=[1] * 6, step=1)
    timings = timing.run(decoder, VOCABULARY, plan, clock=decoder.clock, writer=crowd)
    assert [len(loads) for loads in timings.loads] == [2, 2]
    assert [[each.held for each in loads] for loads in timings.loads] == [[5, 5], [10, 10]]
    one, late, first, second, again = crowd.prompts[:5]
    assert [len(p) for p in (one, late, first, second, again)] == [4, 8, 2, 6, 8]
    assert crowd.prompts[5] == one
    assert len({tuple(p) for p in crowd.prompts if len(p) == 8}) == 6
    assert crowd.texts == []


def test_there_is_a_pause_around_every_round_that_counts() -> None:
    decoder = TimedDecoder(prefill=[1] * 8, step=1)
    reads: list[int] = []
    timing.run(
        decoder,
        VOCABULARY,
        Plan((4, 8), 1, 3, 1),
        clock=decoder.clock,
        pause=lambda: reads.append(len(decoder.prompts)),
    )
    assert reads == [2, 4, 6, 8]


class InterruptedDecoder(TimedDecoder):
    """As if Ctrl-C came while a prompt is read, after so many others."""

    def __init__(self, prompts: int) -> None:
        super().__init__(prefill=[1] * 100, step=1)
        self.left = prompts

    def read(self, chunks: Sequence[Chunk]) -> Any:
        if chunks[0].start == 0 and len(chunks[0].ids) > 1:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
        return super().read(chunks)


@pytest.mark.parametrize("prompts", [4, 5])
def test_ctrl_c_leaves_the_rounds_that_are_complete(tiny_config: ModelConfig, prompts: int) -> None:
    plan = Plan((4, 8), 2, 9, 1)
    report = bench.measure(InterruptedDecoder(prompts), tiny_config, CPU, plan)
    assert (report.interrupted, report.repeats) == (True, 1)
    assert [result.context for result in report.contexts] == [4, 8]


@pytest.mark.parametrize("prompts", [0, 1, 2, 3])
def test_ctrl_c_before_anything_counts_is_one(tiny_config: ModelConfig, prompts: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        bench.measure(InterruptedDecoder(prompts), tiny_config, CPU, Plan((4, 8), 2, 9, 1))


# What it comes to.


def test_spread_of_an_even_number_is_between_the_two_in_the_middle() -> None:
    assert limits.spread([4.0, 1.0, 2.0, 8.0]) == Spread(3.0, 1.0, 8.0)


def test_speeds_and_limit_by_hand() -> None:
    config = ModelConfig(10, context_length=64, emb_dim=4, n_heads=2, n_layers=1, qkv_bias=True)
    # Head 10 · 4, matrices 12 · 4 · 4, biases 12 + 4 + 16 + 4, three norms of 2 · 4, a position.
    weights = 4 * (40 + 192 + 36 + 24 + 4)
    cache = 4 * 2 * 4 * (30 + 5)  # keys and values of 4 numbers; tokens 31 to 39 after 30, so 35
    measurement = Measurement(30, 9, (3.0, 1.0, 2.0), (9.0, 3.0, 4.5))
    result = limits.judge(measurement, config, "fp32", 1, speed=4.0 * (weights + cache))
    assert result.bytes_per_step == weights + cache
    assert result.prefill_tokens_per_second == Spread(15.0, 10.0, 30.0)
    assert result.decode_tokens_per_second == Spread(2.0, 1.0, 3.0)
    assert result.limit_tokens_per_second == 4.0
    assert result.share_of_limit == 0.5


@pytest.mark.parametrize(
    ("cache", "seconds", "share"),
    [(None, 1.0, 0.5), (499, 1.0, 0.5), (500, 1.0, None), (0, 0.5, 1.0)],
)
def test_a_share_is_only_one_of_memory(
    monkeypatch: pytest.MonkeyPatch, cache: int | None, seconds: float, share: float | None
) -> None:
    monkeypatch.setattr(limits.estimate, "step_weight_bytes", lambda *_: 400)
    monkeypatch.setattr(limits.estimate, "kv_cache_bytes", lambda *_: 100)
    measurement = Measurement(4, 1, (1.0,), (seconds,))
    result = limits.judge(measurement, SMALL, "fp32", 1, speed=1000, cache=cache)
    assert (result.limit_tokens_per_second, result.share_of_limit) == (2.0, share)


def test_a_batch_shares_the_weights_and_full_pages_of_the_prompt() -> None:
    measurement = Measurement(99, 1, (1.0,), (0.5,))
    one, ten = (limits.judge(measurement, SMALL, "fp32", n, speed=40e9) for n in (1, 10))
    assert ten.bytes_per_step - one.bytes_per_step == 9 * (100 - 3 * 32) * 73_728
    assert ten.decode_tokens_per_second.median == 20
    assert ten.limit_tokens_per_second == pytest.approx(10 * 40e9 / ten.bytes_per_step)
    assert one.limit_tokens_per_second == pytest.approx(79.7, abs=0.1)  # 40 GB/s ÷ 502 MB


@pytest.mark.parametrize(
    ("reading", "cache", "seen", "bandwidth", "shares"),
    [
        # The fastest rounds read 500 bytes in 0.5 s, and 600 in 0.4 s.
        (2000.0, 0, "reading", 2000.0, [0.25, 0.5]),
        (1200.0, 0, "decoding", 1500.0, [1 / 3, 2 / 3]),
        (1200.0, 599, "decoding", 1500.0, [None, 2 / 3]),
        (900.0, 600, "reading", 900.0, [None, None]),
    ],
)
def test_no_share_exceeds_what_the_memory_was_seen_to_do(
    monkeypatch: pytest.MonkeyPatch,
    reading: float,
    cache: int,
    seen: str,
    bandwidth: float,
    shares: list[float | None],
) -> None:
    monkeypatch.setattr(limits.estimate, "step_weight_bytes", lambda *_: 400)
    monkeypatch.setattr(limits.estimate, "kv_cache_bytes", lambda *a: 100 if a[2] < 20 else 200)
    monkeypatch.setattr(bench, "cache_size", lambda device: cache)
    timings = timing.Timings(
        1.0,
        (
            Measurement(9, 1, (1.0,) * 3, (1.0, 0.5, 2.0)),
            Measurement(29, 1, (1.0,) * 3, (0.6, 0.4, 0.7)),
        ),
    )
    plan = Plan((9, 29), 1, 3, 1)
    report = bench._report(timings, SMALL, CPU, plan, reading, None)
    assert (report.bandwidth_seen_in, report.bandwidth_bytes_per_second) == (seen, bandwidth)
    assert [result.share_of_limit for result in report.contexts] == pytest.approx(shares)
    assert all(result.share_of_limit <= 1 for result in report.contexts if not cache)


def test_sequences_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.estimate, "step_weight_bytes", lambda *a: 400 + a[2])
    monkeypatch.setattr(limits.estimate, "kv_cache_bytes", lambda *a: a[2])
    loads = [Load(2.0, 90, 0.5, 0.3), Load(1.0, 96, 0.7, 0.4), Load(4.0, 92, 0.6, 0.2)]
    plan = Plan((8, 32), 10, 3, 1, sequences=(5,))
    steps = limits.loaded_steps(loads, 5, 10, SMALL, "fp32")
    assert steps.bytes == 400 + 5 + 92 + 5 * 5
    result = limits.judge_load(loads, steps, plan, 5220.0, None)
    assert result.decode_tokens_per_second == Spread(25.0, 12.5, 50.0)
    assert result.limit_tokens_per_second == 50.0
    assert result.share_of_limit == 0.5
    assert (result.sequences, result.prompt) == (5, 32)
    assert result.gap_s == Spread(0.2, 0.1, 0.4)
    assert result.time_to_first_token_s == Spread(0.6, 0.5, 0.7)
    assert result.longest_gap_s == Spread(0.3, 0.2, 0.4)


def test_a_model_is_measured_from_its_decoder_to_its_share(tiny_config: ModelConfig) -> None:
    decoder = TimedDecoder(prefill=[1] * 6, step=1)  # two of which follow the readings
    plan = Plan((4, 8), 2, 1, 1)
    report = bench.measure(decoder, tiny_config, CPU, plan)
    assert [result.context for result in report.contexts] == [4, 8]
    for result in report.contexts:
        limit = report.bandwidth_bytes_per_second / result.bytes_per_step
        assert result.limit_tokens_per_second == pytest.approx(limit)
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_bytes > 10e6  # an interpreter alone takes more
    assert report.device_name == cpu_name() != ""
