"""What `bench` measures, and the seconds that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Imported here: NumPy's own late import of it loses a Ctrl-C that comes meanwhile.
from numpy.random import default_rng

from gpt2cli.analysis import load
from gpt2cli.analysis.load import Load, Writer
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.sampling.rules import greedy
from gpt2cli.system.bandwidth import Clock

TOKENS = 50
SEED = 0  # of the ids that are read: their values do not change the work


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: `tokens` decoded after each of `contexts`, `repeats` times over.

    And by so many `sequences` of different lengths, while a prompt of the longest context comes in.
    """

    contexts: tuple[int, ...]
    tokens: int
    repeats: int
    samples: int
    sequences: tuple[int, ...] = ()

    @property
    def measurements(self) -> int:
        """Those of all rounds, with the round that does not count."""
        return (len(self.contexts) + len(self.sequences)) * (self.repeats + 1)

    def room(self, context_length: int) -> int:
        """Tokens of a KV cache for the sequences and the prompt that comes in."""
        counts = self.sequences
        return max((load.room(n, context_length, self.tokens) for n in counts), default=0)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds to read `context` tokens and choose the next, and to decode `tokens` more."""

    context: int
    tokens: int
    prefill_seconds: tuple[float, ...]
    decode_seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timings:
    """All measurements, those of so many sequences, and the seconds of the very first prefill.

    There is one of each for every round that was completed.
    """

    first_prefill_seconds: float
    measurements: tuple[Measurement, ...]
    loads: tuple[tuple[Load, ...], ...] = ()

    @property
    def repeats(self) -> int:
        """The rounds that count."""
        return len(self.measurements[0].decode_seconds)


def check_counts(
    contexts: Sequence[int],
    tokens: int,
    repeats: int,
    samples: int,
    sequences: Sequence[int] = (),
) -> None:
    """Raise `UsageError` for a count below 1, which is wrong for any model."""
    given = [("context", context) for context in contexts]
    given += [("sequences", count) for count in sequences]
    for name, value in (*given, ("tokens", tokens), ("repeats", repeats), ("samples", samples)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")


def make_plan(
    context_length: int,
    contexts: Sequence[int],
    tokens: int | None = None,
    repeats: int = 5,
    samples: int = 1,
    sequences: Sequence[int] = (),
) -> Plan:
    """The plan, with defaults for what was not given. Raises `UsageError` for an impossible one.

    Without `contexts`: a short one, half a window, and seven eighths or what fits.
    """
    if tokens is None:
        tokens = min(TOKENS, max(context_length // 4, 1))
    check_counts(contexts, tokens, repeats, samples, sequences)
    room = context_length - tokens
    if room < 1:
        raise UsageError(
            f"{tokens} tokens leave no room to read any in a context of {context_length}; "
            "give fewer tokens"
        )
    usual = (min(32, room), min(context_length // 2, room), min(context_length * 7 // 8, room))
    for context in contexts:
        if context > room:
            raise UsageError(
                f"context {context} and {tokens} tokens to decode exceed the model's "
                f"{context_length}; give at most context {room}, or fewer tokens",
                "context",
                "context",
            )
    for count in sequences:
        if (most := load.reach(count, context_length, tokens)) > context_length:
            raise UsageError(
                f"{count} sequences at once come to {most} tokens each, more than the model's "
                f"{context_length}; give fewer sequences or tokens",
                "sequences",
                "tokens",
            )
    chosen = tuple(sorted(set(contexts or usual)))
    return Plan(chosen, tokens, repeats, samples, tuple(sorted(set(sequences))))


def run(
    decoder: Decoder,
    vocab_size: int,
    plan: Plan,
    advance: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
    *,
    writer: Writer | None = None,
    pause: Callable[[], None] = lambda: None,
) -> Timings:
    """Measure everything in turn, round by round, so that a slow phase affects it all.

    The first round does not count: weights are paged in, libraries set themselves up, GPUs
    record their graphs. `pause` is called before and after each of the others. Ctrl-C ends it;
    before a round that counts is complete it is raised.
    """
    random = default_rng(SEED)
    prompts = load.random_prompts(random, vocab_size, plan.contexts)
    crowds = [
        load.random_prompts(random, vocab_size, load.lengths(count, decoder.context_length))
        for count in plan.sequences
    ]
    rounds: list[tuple[list[tuple[float, float]], list[Load]]] = []
    try:
        for _ in range(plan.repeats + 1):
            pairs, loads = [], []
            for prompt in prompts:
                pairs.append(_measure(decoder, prompt, plan, clock))
                advance()
            for crowd in crowds:
                assert writer is not None
                # Another one each time: of one that is known only the end would be read.
                (late,) = load.random_prompts(random, vocab_size, plan.contexts[-1:])
                loads.append(load.measure(writer, crowd, late, plan.tokens, clock))
                advance()
            rounds.append((pairs, loads))
            pause()
    except KeyboardInterrupt:
        if len(rounds) < 2:
            raise
    return _timings(plan, rounds)


def _timings(plan: Plan, rounds: Sequence[tuple[list[tuple[float, float]], list[Load]]]) -> Timings:
    """What was measured in each round, sorted by what it is."""
    (first, _), *_ = rounds
    by_context = zip(*(pairs for pairs, _ in rounds[1:]), strict=True)
    return Timings(
        first[0][0],
        tuple(
            Measurement(context, plan.tokens, *zip(*pairs, strict=True))
            for context, pairs in zip(plan.contexts, by_context, strict=True)
        ),
        tuple(zip(*(loads for _, loads in rounds[1:]), strict=True)),
    )


def _measure(decoder: Decoder, prompt: list[int], plan: Plan, clock: Clock) -> tuple[float, float]:
    """Seconds to read and to decode, greedily, as `generation` does it."""
    sequences = [decoder.open()]
    begun = clock()
    # A list is there only when the device has finished.
    ids = greedy(decoder.read([Chunk(sequences[0], 0, prompt)])).tolist() * plan.samples
    first = clock()
    sequences += [decoder.fork(sequences[0]) for _ in range(plan.samples - 1)]
    for t in range(len(prompt), len(prompt) + plan.tokens):
        chunks = [Chunk(s, t, [token]) for s, token in zip(sequences, ids, strict=True)]
        ids = greedy(decoder.read(chunks)).tolist()
    last = clock()
    for sequence in sequences:
        decoder.close(sequence)
    return first - begun, last - first
