"""The loop that turns a prompt into text: prefill, choose, stop, slide the context.

It knows a model only through the `Decoder` protocol, yields events and never prints.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gpt2cli.config import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.sampling import choose, generators, mark_chosen, mark_seen, uniforms
from gpt2cli.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "eos"]
Rows = Sequence[Sequence[int]]


class Decoder(Protocol):
    """A model that remembers what it has read, for a batch of B rows of equal length.

    Logits are (B, V) arrays of the array API standard, for the token that comes next.
    """

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""

    @property
    def length(self) -> int:
        """The tokens that it holds now."""

    def prefill(self, rows: Rows) -> Any:
        """Forget everything, then read B rows of T ids, or one row meant for all."""

    def step(self, ids: Sequence[int]) -> Any:
        """Read one more id a row."""

    def extend(self, rows: Rows) -> Any:
        """Read T more ids of each of the first B rows, with logits after every one. → (B, T, V)"""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What to generate. Sample i draws from its own generator, made of `seed` and i."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_tokens: int = 100
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, not {self.seed}")
        if "" in self.stop:
            raise UsageError("a stop string must not be empty")


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of one sample.

    `text` is what can be shown by now: it lags behind where a character is unfinished or a
    stop string may have begun. `token_id` is None when the end-of-text token ended it.
    """

    sample: int
    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None


def new_seed() -> int:
    """A seed for those who gave none; short enough to type."""
    return secrets.randbelow(2**31)


def slide(ids: Sequence[int], context_length: int) -> list[int]:
    """The newest tokens, with room to go on: once the window is full its oldest quarter goes.

    Positions are learned, so what remains must be read again. Doing that for a quarter of
    the window at a time keeps the cost a token flat: three tokens of prefill for each.
    """
    return list(ids[-(context_length - context_length // 4) :])


def fit_prompt(ids: Sequence[int], context_length: int) -> list[int]:
    """The prompt as the model will read it: whole if it fits, else its newest part."""
    return list(ids) if len(ids) <= context_length else slide(ids, context_length)


def generate(
    decoder: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig
) -> Iterator[Event]:
    """Continue `prompt`, `config.samples` times at once; an event for every token.

    Raises `UsageError` for an empty prompt.
    """
    if not prompt:
        raise UsageError("the prompt is empty")
    rows = [list(prompt) for _ in range(config.samples)]
    texts = [TextStream(tokenizer, config.stop) for _ in rows]
    eos = None if config.ignore_eos else tokenizer.end_of_text
    active = set(range(config.samples))
    seen = None
    logits = decoder.prefill([fit_prompt(prompt, decoder.context_length)])
    random = uniforms(generators(config.seed, config.samples), logits)
    for count in range(1, config.max_tokens + 1):
        # A vocabulary padded beyond the tokenizer has ids that stand for nothing.
        logits = logits[:, : tokenizer.size]
        if config.sampling.repetition_penalty is not None and seen is None:
            seen = mark_seen(None, logits, rows)
        chosen = choose(logits, config.sampling, next(random), seen)
        if seen is not None:
            seen = mark_chosen(seen, chosen)
        ids: list[int] = chosen.tolist()  # the one time a token that a GPU is waited for
        for i in sorted(active):
            event = _event(i, ids[i], texts[i], eos, last=count == config.max_tokens)
            if event.finish_reason:
                active.discard(i)
            yield event
        if not active:
            return
        for row, token_id in zip(rows, ids, strict=True):
            row.append(token_id)
        if decoder.length == decoder.context_length:
            logits = decoder.prefill([slide(row, decoder.context_length) for row in rows])
        else:
            logits = decoder.step(ids)


def _event(sample: int, token_id: int, text: TextStream, eos: int | None, last: bool) -> Event:
    if token_id == eos:
        return Event(sample, None, text.flush(), "eos")
    shown = text.push(token_id)
    if text.stopped:
        return Event(sample, token_id, shown, "stop")
    if last:
        return Event(sample, token_id, shown + text.flush(), "length")
    return Event(sample, token_id, shown)


class TextStream:
    """Turns one sample's tokens into text that is safe to show, up to a stop string.

    Text that may be the beginning of a stop string is held back until it is known.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that can be shown after one more token."""
        return self._release(self._held + self._decoder.push(token_id))

    def flush(self) -> str:
        """What was held back, when no more tokens come."""
        text = self._release(self._held + self._decoder.flush())
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, text: str) -> str:
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
