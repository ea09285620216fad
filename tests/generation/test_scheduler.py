"""Batched equals alone: a text depends on its own prompt, settings and seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BYTES, ScriptedDecoder, certain, decoders, needs_engine, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.decoders.pages import PAGE
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.generation import loop
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.scheduler import Scheduler, Update
from gpt2cli.sampling.rules import log_probabilities
from gpt2cli.weights import checkpoint

GREEDY = SamplingConfig(temperature=0)


def logits_of(_: int, text: Sequence[int]) -> NDArray:
    """Logits that depend on every token; the end of text is rather probable."""
    logits = np.random.default_rng([7, *text]).normal(size=257).astype(np.float32)
    logits[-1] += 1
    return logits


def decoder(tokens: int | None = None, context_length: int = 100) -> ScriptedDecoder:
    return ScriptedDecoder(logits_of, context_length, tokens)


def exhaust(scheduler: Scheduler) -> list[Update]:
    updates = []
    while scheduler.busy:
        updates += scheduler.step()
    return updates


def alone(prompt: Sequence[int], config: GenerationConfig, context_length: int) -> list[Event]:
    return list(loop.generate(decoder(None, context_length), BYTES, prompt, config))


SAMPLING = st.sampled_from(
    [
        GREEDY,
        SamplingConfig(),
        SamplingConfig(top_p=0.9, temperature=0.8),
        SamplingConfig(top_k=5, repetition_penalty=1.3),
        SamplingConfig(min_p=0.05, frequency_penalty=0.5),
        SamplingConfig(mirostat_tau=2.0),
        SamplingConfig(xtc_probability=0.5, xtc_threshold=0.05),
        SamplingConfig(typical_p=0.9, no_repeat_ngram=2),
        SamplingConfig(dry_multiplier=0.8),
    ]
)
CONFIGS = st.builds(
    GenerationConfig,
    SAMPLING,
    max_tokens=st.integers(1, 60),
    samples=st.integers(1, 3),
    seed=st.integers(0, 5),
    stop=st.sampled_from([(), ("a",), ("ab", "zz")]),
    stop_token_ids=st.sampled_from([(), tuple(range(0, 256, 40))]),
    ignore_eos=st.booleans(),
    bias=st.sampled_from([{}, {97: 2.0, 98: -np.inf}]),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.sampled_from([None, None, 0, 3]),
)
STEM = list(range(200))
PROMPTS = st.one_of(
    st.lists(st.integers(0, 255), min_size=1, max_size=90),
    st.integers(1, 100).map(lambda n: STEM[:n]),
)


@given(
    requests=st.lists(st.tuples(PROMPTS, CONFIGS), min_size=1, max_size=8),
    context_length=st.sampled_from([100, 128]),
    spare=st.integers(0, 12),
    max_sequences=st.integers(1, 9),
    batch_tokens=st.sampled_from([1, 20, 64, 256]),
    prompt_tokens=st.sampled_from([1, 256]),
    arrivals=st.lists(st.integers(0, 5), min_size=8, max_size=8),
)
@settings(deadline=None, max_examples=60)
def test_every_text_is_what_it_is_alone(
    requests: list[tuple[list[int], GenerationConfig]],
    context_length: int,
    spare: int,
    max_sequences: int,
    batch_tokens: int,
    prompt_tokens: int,
    arrivals: list[int],
) -> None:
    """In any company, with any limits, arriving at any time, giving way when pages run out."""
    model = decoder(128 + spare * PAGE, context_length)
    scheduler = Scheduler(
        model,
        BYTES,
        max_sequences=max_sequences,
        batch_tokens=batch_tokens,
        prompt_tokens=prompt_tokens,
    )
    found: dict[int, list[Event]] = {}
    for (prompt, config), pause in zip(requests, arrivals, strict=False):
        found[scheduler.add(prompt, config)] = []
        for request, event in (u for _ in range(pause) for u in scheduler.step()):
            assert isinstance(event, Event)
            found[request].append(event)
    for request, event in exhaust(scheduler):
        assert isinstance(event, Event)
        found[request].append(event)
    for events, (prompt, config) in zip(found.values(), requests, strict=True):
        expected = alone(prompt, config, context_length)
        for sample in range(config.samples):
            mine = [event for event in events if event.sample == sample]
            assert mine == [event for event in expected if event.sample == sample]
    assert model.free_pages == model.pages
    assert not scheduler.busy


def measured(prompt: Sequence[int], count: int) -> list[tuple[int, float, list[Any]]]:
    """The log-probabilities of a prompt's tokens, by the logits after each beginning."""
    found = []
    for n in range(1, len(prompt)):
        [(value, best)] = log_probabilities(logits_of(0, prompt[:n])[None], [prompt[n]], count)
        found.append((prompt[n], value, best))
    return found


def shown(event: Event) -> list[tuple[int, float, list[Any]]]:
    assert event.prompt_logprobs is not None
    first, *others = event.prompt_logprobs
    assert first is None
    return [(t.id, t.logprob, [(o.id, o.logprob) for o in t.top]) for t in others if t]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_every_token_of_a_prompt_is_measured_in_any_company(count: int) -> None:
    """Beside others that are written, and where another has read the same prompt."""
    model = decoder(2000, 300)
    scheduler = Scheduler(model, BYTES, batch_tokens=50)
    scheduler.add([1, 2], GenerationConfig(GREEDY, max_tokens=40, ignore_eos=True))
    scheduler.add(STEM, GenerationConfig(GREEDY, max_tokens=1))
    for _ in range(5):
        scheduler.step()
    config = GenerationConfig(GREEDY, max_tokens=3, samples=2, prompt_logprobs=count)
    requests = [scheduler.add(prompt, config) for prompt in (STEM, STEM, STEM[:70])]
    updates = exhaust(scheduler)
    for request, prompt in zip(requests, (STEM, STEM, STEM[:70]), strict=True):
        mine = [event for r, event in updates if r == request and isinstance(event, Event)]
        [event] = [event for event in mine if event.prompt_logprobs]
        assert event is mine[0]
        assert event.sample == 0
        assert shown(event) == measured(prompt, count)


def test_what_is_known_of_a_prompt_is_kept_when_it_gives_way() -> None:
    model = decoder(7 * PAGE, 7 * PAGE)
    scheduler = Scheduler(model, BYTES, batch_tokens=1, prompt_tokens=1)
    scheduler.add([1], GenerationConfig(GREEDY, max_tokens=40, ignore_eos=True))
    for _ in range(30):
        scheduler.step()
    prompt = STEM[:180]
    request = scheduler.add(prompt, GenerationConfig(GREEDY, max_tokens=1, prompt_logprobs=2))
    updates = exhaust(scheduler)
    [event] = [event for r, event in updates if r == request and isinstance(event, Event)]
    assert shown(event) == measured(prompt, 2)
    chunks = [chunk for chunks in model.reads for chunk in chunks if len(chunk.ids) > 1]
    assert [(chunk.start, chunk.every) for chunk in chunks] == [
        *((0, True), (64, True)),  # then it gave way
        *((0, False), (64, False), (128, True)),
    ]


@needs_engine
@pytest.mark.parametrize("tokens", [1, 100, 256])
def test_prompt_logprobs_are_the_same_bits_in_any_pieces(tokens: int, tmp_path: Path) -> None:
    """With the engine: alone and at once, or beside others and in pieces."""
    checkpoint.save(random_model(ModelConfig(257, 200, 48, 3, 2)), tmp_path, 0, torch.float32)
    make = decoders("native", tmp_path)
    prompt, config = [7 * i % 250 for i in range(190)], GenerationConfig(GREEDY, max_tokens=5)
    measuring = replace(config, prompt_logprobs=2)
    expected = list(loop.generate(make(), BYTES, prompt, measuring))
    without = list(loop.generate(make(), BYTES, prompt, config))
    assert without == [replace(event, prompt_logprobs=None) for event in expected]
    scheduler = Scheduler(make(2000), BYTES, batch_tokens=tokens, prompt_tokens=tokens)
    for first in (5, 9):
        scheduler.add([first, 3], GenerationConfig(max_tokens=60, ignore_eos=True))
    scheduler.step()
    requests = [scheduler.add(prompt, measuring) for _ in range(2)]
    updates = exhaust(scheduler)
    for request in requests:
        assert [event for r, event in updates if r == request] == expected


def script(text: bytes) -> Any:
    return lambda _, ids: certain(text[len(ids) % len(text)])


def test_an_ended_text_leaves_its_place_to_the_next_at_once() -> None:
    model = ScriptedDecoder(script(b"ab"))
    scheduler = Scheduler(model, BYTES, max_sequences=2)
    for count in (1, 4, 2, 1):
        scheduler.add([65], GenerationConfig(GREEDY, max_tokens=count))
    exhaust(scheduler)
    assert [len(chunks) for chunks in model.reads] == [2, 2, 2, 2]


def test_the_caller_bounds_a_step_that_reads_prompts_alone() -> None:
    lengths = {}
    for tokens in (64, 100):
        model = ScriptedDecoder(script(b"ab"))
        scheduler = Scheduler(model, BYTES, batch_tokens=16, prompt_tokens=tokens)
        scheduler.add([66] * 210, GenerationConfig(GREEDY, max_tokens=1))
        exhaust(scheduler)
        lengths[tokens] = [len(chunk.ids) for [chunk] in model.reads]
    assert lengths == {64: [64, 64, 64, 18], 100: [100, 100, 10]}


def test_texts_are_counted_as_they_wait_and_run() -> None:
    scheduler = Scheduler(ScriptedDecoder(script(b"ab")), BYTES, max_sequences=1)
    config = GenerationConfig(GREEDY, max_tokens=2, samples=3)
    samples = scheduler.prepare([1], config)
    assert [each.sample for each in samples] == [0, 1, 2]
    assert not scheduler.busy
    first, second = scheduler.queue(samples), scheduler.add([2], config)
    counts = [(scheduler.waiting, scheduler.running)]
    while scheduler.busy:
        scheduler.step()
        counts.append((scheduler.waiting, scheduler.running))
    assert counts == [(6, 0), (3, 3), (3, 0), (0, 3), (0, 0)]
    assert first != second


def test_a_long_prompt_comes_in_beside_what_is_being_written() -> None:
    """Decodes come first in every step, and the prompt takes what is left of the budget."""
    model = ScriptedDecoder(script(b"ab"))
    scheduler = Scheduler(model, BYTES, batch_tokens=100)
    first = scheduler.add([65], GenerationConfig(GREEDY, max_tokens=20))
    scheduler.step()
    second = scheduler.add([66] * 350, GenerationConfig(GREEDY, max_tokens=2))
    steps = [[request for request, _ in scheduler.step()] for _ in range(5)]
    assert steps == [[first]] * 3 + [[first, second]] * 2
    lengths = [[len(chunk.ids) for chunk in chunks] for chunks in model.reads[1:5]]
    assert lengths == [[1, 99], [1, 99], [1, 99], [1, 53]]


def test_prompts_that_arrive_together_read_their_common_beginning_once() -> None:
    model = ScriptedDecoder(logits_of)
    scheduler = Scheduler(model, BYTES)
    for ending in range(4):
        scheduler.add([*range(200), ending], GenerationConfig(GREEDY, max_tokens=1))
    exhaust(scheduler)
    whole = 200 // PAGE * PAGE
    assert model.tokens_read == 201 + 3 * (201 - whole)


def test_samples_share_their_prompt() -> None:
    model = ScriptedDecoder(logits_of)
    scheduler = Scheduler(model, BYTES)
    config = GenerationConfig(SamplingConfig(), max_tokens=3, samples=5, ignore_eos=True)
    scheduler.add([1] * 70, config)
    exhaust(scheduler)
    assert model.tokens_read == 70 + 5 * 2


def test_the_newest_gives_way_when_pages_run_out_and_is_read_again() -> None:
    model = ScriptedDecoder(logits_of, 128, 5 * PAGE)
    scheduler = Scheduler(model, BYTES)
    config = GenerationConfig(GREEDY, max_tokens=90, ignore_eos=True)
    old, new = (scheduler.add([first], config) for first in (1, 2))
    updates = exhaust(scheduler)
    ends = [r for r, event in updates if isinstance(event, Event) and event.finish_reason]
    assert ends == [old, new]
    assert model.tokens_read > 2 * 90


def test_a_cancelled_request_is_gone_with_the_next_step() -> None:
    model = ScriptedDecoder(logits_of)
    scheduler = Scheduler(model, BYTES, max_sequences=2)
    config = GenerationConfig(SamplingConfig(), max_tokens=9, samples=2, ignore_eos=True)
    running, waiting, other = (scheduler.add([first], config) for first in (1, 2, 3))
    scheduler.step()
    scheduler.cancel(running)
    scheduler.cancel(waiting)
    scheduler.cancel(other + 1)  # which there is not
    assert {request for request, _ in exhaust(scheduler)} == {other}
    assert model.free_pages == model.pages
    scheduler.cancel(other)  # which has ended


def test_a_text_that_fails_leaves_the_others_as_they_are() -> None:
    scheduler = Scheduler(ScriptedDecoder(logits_of), BYTES)
    banned = GenerationConfig(GREEDY, bias=dict.fromkeys(range(257), -np.inf), samples=2)
    good = GenerationConfig(GREEDY, max_tokens=3, ignore_eos=True)
    first, bad, last = (scheduler.add([1], config) for config in (good, banned, good))
    updates = exhaust(scheduler)
    [error] = [what for request, what in updates if request == bad]
    assert isinstance(error, GPT2CLIError)
    assert "ban them all" in str(error)
    for request in (first, last):
        assert [what for r, what in updates if r == request] == alone([1], good, 1000)


def test_a_wrong_prompt_is_refused_before_anything_is_read() -> None:
    scheduler = Scheduler(decoder(), BYTES)
    for prompt in ([], [1] * 101):
        with pytest.raises(UsageError, match=r"empty|context"):
            scheduler.add(prompt, GenerationConfig())
    assert not scheduler.busy
    assert scheduler.step() == []
