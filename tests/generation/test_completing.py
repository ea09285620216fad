"""Any number of prompts through one batch, and one batch for many threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from threading import Thread
from time import sleep
from typing import Any

import numpy as np
import pytest
from helpers import BYTES, ScriptedDecoder, certain

from gpt2cli.arrays import NDArray
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.decoders.pages import Chunk
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.generation import loop
from gpt2cli.generation.batcher import Batcher
from gpt2cli.generation.completing import WINDOW, Prepared, complete
from gpt2cli.generation.record import Completion
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.scheduler import Scheduler

SAMPLED = SamplingConfig(temperature=1.0)


def logits_of(_: int, text: Sequence[int]) -> NDArray:
    return np.random.default_rng([3, *text]).normal(size=257).astype(np.float32)


def batcher(max_sequences: int = 4) -> Batcher:
    return Batcher(Scheduler(ScriptedDecoder(logits_of), BYTES, max_sequences=max_sequences))


def request(index: int, tokens: int, samples: int = 1) -> Prepared:
    config = GenerationConfig(SAMPLED, max_tokens=tokens, seed=index, samples=samples)
    return Prepared(Completion(index, index, 2), [index % 256, 65], config)


def text_alone(prompt: Prepared) -> str:
    assert prompt.config is not None
    events = loop.generate(ScriptedDecoder(logits_of), BYTES, prompt.ids, prompt.config)
    return "".join(event.text for event in events)


LENGTHS = [7, 1, 30, 2, 5, 1, 1, 12, 3, 20, 4, 9]


@pytest.mark.parametrize("ordered", [True, False])
def test_every_prompt_becomes_what_it_is_alone(ordered: bool) -> None:
    prompts = [request(i, n) for i, n in enumerate(LENGTHS)]
    found = list(complete(batcher(), prompts, ordered=ordered))
    order = [completion.index for completion in found]
    assert sorted(order) == list(range(len(LENGTHS)))
    assert (order == sorted(order)) == ordered
    for completion in found:
        assert completion.text == text_alone(request(completion.index, LENGTHS[completion.index]))
        assert completion.finished
        assert completion.error is None


def test_a_completion_has_the_logprobs_of_its_prompt() -> None:
    config = GenerationConfig(SAMPLED, max_tokens=2, samples=2, prompt_logprobs=1)
    prompts = [Prepared(Completion(0, 0, 3), [1, 2, 3], config), request(1, 2)]
    with_, without = complete(batcher(), prompts)
    [event] = [
        event
        for event in loop.generate(ScriptedDecoder(logits_of), BYTES, [1, 2, 3], config)
        if event.prompt_logprobs
    ]
    assert with_.prompt_logprobs == list(event.prompt_logprobs or ())
    assert [token and token.id for token in with_.prompt_logprobs] == [None, 2, 3]
    assert without.prompt_logprobs == []


@pytest.mark.parametrize("stop_token_ids", [(), (65,)])
def test_what_ended_a_text_is_measured_too(stop_token_ids: tuple[int, ...]) -> None:
    def ends(_: int, text: Sequence[int]) -> NDArray:
        return certain(66 if len(text) < 3 else 65 if stop_token_ids else 256)

    config = GenerationConfig(SAMPLED, stop_token_ids=stop_token_ids, logprobs=1)
    shared = Batcher(Scheduler(ScriptedDecoder(ends), BYTES))
    [found] = complete(shared, [Prepared(Completion(0, 0, 1), [1], config)])
    [sample] = found.samples
    assert sample.token_ids == [token.id for token in sample.logprobs] == [66, 66]
    assert sample.end_logprob is not None
    assert sample.end_logprob.id == (65 if stop_token_ids else 256)
    assert sample.end_logprob.logprob == pytest.approx(-np.log(1 + 256 * np.exp(-9)))


def test_prompts_are_taken_as_there_is_room_for_them() -> None:
    taken = 0

    def prompts() -> Iterator[Prepared]:
        nonlocal taken
        for i in count():
            taken += 1
            yield request(i, 2)

    found = complete(batcher(), prompts())
    assert [completion.index for completion in islice(found, 100)] == list(range(100))
    assert taken < 120


def test_the_newest_is_never_far_ahead_of_the_oldest_that_is_unfinished() -> None:
    taken = 0

    def prompts() -> Iterator[Prepared]:
        nonlocal taken
        for i in range(3 * WINDOW):
            taken += 1
            yield request(i, 990 if i == 0 else 1)

    first = next(complete(batcher(16), prompts()))
    assert first.index == 0
    assert taken <= WINDOW


def test_a_prompt_that_fails_has_its_error_and_the_others_go_on() -> None:
    prompts = [request(i, 3) for i in range(5)]
    prompts[1] = prompts[1]._replace(ids=[])
    wrong = Completion(3, 0, 0, error=UsageError("no prompt"))
    prompts[3] = Prepared(wrong, [], None)
    found = list(complete(batcher(), prompts))
    assert [str(completion.error) for completion in found if completion.error] == [
        "the prompt is empty",
        "no prompt",
    ]
    assert [len(completion.samples[0].token_ids) for completion in found if not completion.error]


def test_an_abandoned_run_leaves_no_text_in_the_batch() -> None:
    shared = batcher()
    found = complete(shared, (request(i, 50, samples=2) for i in count()))
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert list(shared.stream([1], GenerationConfig(SAMPLED, max_tokens=2)))
    assert shared.scheduler.decoder.free_pages == shared.scheduler.decoder.pages


def test_calls_of_several_threads_share_one_batch() -> None:
    class Slow(ScriptedDecoder):
        def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Any:
            sleep(0.001)
            return super()._compute(chunks, tables)

    slow = Slow(logits_of)
    shared = Batcher(Scheduler(slow, BYTES))
    texts: dict[int, str] = {}

    def write(index: int) -> None:
        prompt = request(index, 60)
        assert prompt.config is not None
        events = shared.stream(prompt.ids, prompt.config)
        texts[index] = "".join(event.text for event in events)

    threads = [Thread(target=write, args=[index]) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {index: text_alone(request(index, 60)) for index in range(8)}
    assert max(len(chunks) for chunks in slow.reads) > 1


def test_damaged_weights_end_every_call() -> None:
    def damaged(_: int, text: Sequence[int]) -> NDArray:
        return np.full(257, np.nan if len(text) > 3 else 0, np.float32)

    shared = Batcher(Scheduler(ScriptedDecoder(damaged), BYTES))
    config = GenerationConfig(SAMPLED, max_tokens=9)
    for _ in range(2):
        with pytest.raises(WeightsError, match="no numbers"):
            list(shared.stream([1], config))
        with pytest.raises(WeightsError, match="no numbers"):
            list(complete(shared, [Prepared(Completion(i, 0, 1), [1], config) for i in range(2)]))
