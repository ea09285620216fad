"""Many sequences at once: what is counted by hand, and that the real scheduler fits the plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest
from helpers import BYTES, ScriptedDecoder, certain

from gpt2cli.analysis import load
from gpt2cli.analysis.load import Load
from gpt2cli.arrays import NDArray
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.scheduler import Scheduler

LATE = 250  # the token that the late prompt consists of


class SlowWriter:
    """Reads a prompt in steps of 10 tokens beside which the others write; each takes its time.

    A step takes a second, and another for every token of a prompt that is read.
    """

    def __init__(self) -> None:
        self.now, self.steps = 0.0, 0
        self.unread: dict[int, int] = {}
        self.cancelled: list[int] = []

    def clock(self) -> float:
        return self.now

    def add(self, prompt: Sequence[int]) -> int:
        number = len(self.unread) + 1
        self.unread[number] = len(prompt)
        return number

    def step(self) -> Collection[int]:
        budget, said = 10, []
        for number, left in self.unread.items():
            read = min(left, budget)
            self.unread[number] -= read
            budget -= read
            if not self.unread[number]:
                said.append(number)
        self.now += 1 + (10 - budget)
        return said

    def cancel(self, number: int) -> None:
        self.cancelled.append(number)


def test_a_load_is_counted_by_hand() -> None:
    writer = SlowWriter()
    found = load.measure(writer, [[7] * 4, [7] * 16], [7] * 25, 3, writer.clock)
    # Two steps read both prompts, in which the first sequence writes two tokens, the second one.
    # Three steps of a second follow; the late prompt takes 10, 10 and 5 tokens.
    assert found == Load(
        decode_seconds=3.0, held=4 + 2 + 16 + 1, first_token_seconds=28.0, longest_gap_seconds=11.0
    )
    assert writer.cancelled == [1, 2, 3]


@pytest.mark.parametrize(
    ("count", "context_length", "expected"),
    [(1, 1024, [64]), (4, 1024, [16, 48, 80, 112]), (3, 8, [1, 1, 1])],
)
def test_lengths_are_spread_evenly_up_to_an_eighth_of_the_context(
    count: int, context_length: int, expected: list[int]
) -> None:
    assert load.lengths(count, context_length) == expected


@pytest.mark.parametrize(
    ("count", "context_length", "tokens"),
    [(1, 1024, 50), (7, 1024, 50), (64, 1024, 50), (200, 1024, 1), (3, 64, 16), (1, 512, 400)],
)
def test_what_the_scheduler_writes_stays_within_what_was_planned(
    count: int, context_length: int, tokens: int
) -> None:
    assert load.reach(count, context_length, tokens) <= context_length
    longest = 0

    def rule(_: int, text: Sequence[int]) -> NDArray:
        nonlocal longest
        if text[0] != LATE:
            longest = max(longest, len(text))
        return certain(1)

    decoder = ScriptedDecoder(rule, context_length, load.room(count, context_length, tokens))
    scheduler = Scheduler(decoder, BYTES, max_sequences=count + 1)
    config = GenerationConfig(SamplingConfig(temperature=0), context_length, ignore_eos=True)

    class Writer:
        def add(self, prompt: Sequence[int]) -> int:
            return scheduler.add(prompt, config)

        def step(self) -> Collection[int]:
            said = [number for number, _ in scheduler.step()]
            assert scheduler.waiting == 0  # for room
            return said

        def cancel(self, number: int) -> None:
            scheduler.cancel(number)

    prompts = [[i % 200] * n for i, n in enumerate(load.lengths(count, context_length))]
    ticks = iter(range(10**6))
    late = [LATE] * (context_length * 7 // 8)
    load.measure(Writer(), prompts, late, tokens, lambda: float(next(ticks)))
    assert max(load.lengths(count, context_length)) < longest
    assert longest <= load.reach(count, context_length, tokens)
    assert not scheduler.busy
    assert decoder.free_pages == decoder.pages
