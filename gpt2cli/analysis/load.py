"""Many sequences at once, and how long a prompt that comes in meanwhile waits for its first token.

The sequences have different lengths, as texts have; all stay as long as one measurement takes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy.random import Generator

from gpt2cli.decoders.pages import PAGE, pages_for
from gpt2cli.system.bandwidth import Clock

LONGEST = 1 / 8  # of the context: the prompt of the longest sequence
READ_AT_LEAST = 64  # tokens of prompts in a step: `generation.scheduler.LEAST_OF_PROMPTS`


class Writer(Protocol):
    """What writes texts side by side, as `generation.scheduler` does; each is known by a number."""

    def add(self, prompt: Sequence[int]) -> int:
        """Let a text begin. → its number"""

    def step(self) -> Collection[int]:
        """Choose a token for every text that has been read. → their numbers"""

    def cancel(self, number: int) -> None:
        """Forget a text."""


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement: seconds, and the tokens that all sequences held when decoding began.

    The gap is the longest between two tokens of the sequences until the prompt's first.
    """

    decode_seconds: float
    held: int
    first_token_seconds: float
    longest_gap_seconds: float


def lengths(count: int, context_length: int) -> list[int]:
    """The prompts' lengths, spread evenly up to the longest."""
    longest = context_length * LONGEST
    return [max(1, int(longest * (2 * i + 1) / (2 * count))) for i in range(count)]


def reach(count: int, context_length: int, tokens: int) -> int:
    """The most tokens that a sequence comes to hold.

    It is decoded also while the others' prompts are read, and the one that comes in.
    """
    prompts = sum(lengths(count, context_length)) + context_length
    return int(context_length * LONGEST) + prompts // READ_AT_LEAST + tokens + 4


def room(count: int, context_length: int, tokens: int) -> int:
    """Tokens of the KV cache that they and the prompt take."""
    pages = count * pages_for(reach(count, context_length, tokens)) + pages_for(context_length)
    return pages * PAGE


def measure(
    writer: Writer, prompts: Sequence[Sequence[int]], late: Sequence[int], tokens: int, clock: Clock
) -> Load:
    """Let sequences of some prompts decode `tokens` tokens each, and then a late prompt come in."""
    held = {writer.add(prompt): len(prompt) for prompt in prompts}
    written: Collection[int] = ()
    while len(written) < len(held):
        written = writer.step()
        for number in written:
            held[number] += 1
    begun = clock()
    for _ in range(tokens):
        writer.step()
    added = last = clock()
    decode_seconds = added - begun
    longest, newest = 0.0, writer.add(late)
    while newest not in written:
        written = writer.step()
        now = clock()
        longest, last = max(longest, now - last), now
    for number in (*held, newest):
        writer.cancel(number)
    return Load(decode_seconds, sum(held.values()), last - added, longest)


def random_prompts(random: Generator, vocab_size: int, sizes: Sequence[int]) -> list[list[int]]:
    """Prompts of some lengths; the ids' values do not change the work."""
    return [random.integers(vocab_size, size=size).tolist() for size in sizes]
