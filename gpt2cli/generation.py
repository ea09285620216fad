"""The loop that turns a prompt into text: prefill, choose, stop, slide the context.

It knows a model only through the `Decoder` protocol, yields events and never prints.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

from gpt2cli.arrays import are_numbers
from gpt2cli.config import SamplingConfig
from gpt2cli.constrain import Constraint, Matchers
from gpt2cli.errors import GPT2CLIError, UsageError, not_numbers
from gpt2cli.sampler import Sampler, Stage
from gpt2cli.sampling import generators, log_probabilities
from gpt2cli.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "eos"]
Rows = Sequence[Sequence[int]]
Choose = Callable[[Any, Rows], Any]  # (B, V) logits and B texts → (B,) ids
MOST_LOGPROBS = 100  # a token; all of a vocabulary would drown a reader


class Reader(Protocol):
    """What `generate` asks of a model that remembers what it has read: B rows of equal length.

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


class Decoder(Reader, Protocol):
    """The same with all that a decoder can do."""

    def extend(self, rows: Rows) -> Any:
        """Read T more ids of each of the first B rows, with logits after every one. → (B, T, V)"""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with what these B rows remember, in this order; some twice, some not at all."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What to generate. Sample i draws from its own generator, made of `seed` and i.

    Neither end-of-text nor a stop string ends a text before `min_tokens`. `bias` is added to
    the logits of token ids; −∞ bans one. Tokens that hold a text of `dry_breakers` interrupt
    what DRY takes for a repetition. `beams` is for `beam.generate`, where nothing is drawn:
    the other settings must leave that to it, and the best `samples` beams are the result. A
    `constraint` alone decides where a text may end.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_tokens: int = 100
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    bias: Mapping[int, float] = field(default_factory=dict)
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    beams: int | None = None
    length_penalty: float = 1.0
    logprobs: int | None = None
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"{name} must be at least 1, not {value}", name)
        if self.seed < 0:
            raise UsageError(f"seed must be 0 or more, not {self.seed}", "seed")
        if "" in self.stop:
            raise UsageError("a stop string must not be empty")
        if "" in self.dry_breakers:
            raise UsageError("a DRY breaker must not be empty")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UsageError(
                f"min_tokens must be between 0 and max_tokens ({self.max_tokens}), "
                f"not {self.min_tokens}",
                "min_tokens",
                "max_tokens",
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise UsageError(
                f"logprobs must be between 0 and {MOST_LOGPROBS}, not {self.logprobs}", "logprobs"
            )
        if self.beams is not None:
            self._check_beams(self.beams)
        if self.constraint is not None:
            names = ("stop", "ignore_eos", "min_tokens", "beams")
            if clash := [name for name in names if getattr(self, name)]:
                raise UsageError(
                    f"a constraint and {clash[0]} cannot go together; leave one of them out",
                    clash[0],
                )

    def _check_beams(self, beams: int) -> None:
        if beams < 1:
            raise UsageError(f"beams must be at least 1, not {beams}", "beams")
        if not math.isfinite(self.length_penalty):
            raise UsageError(
                f"length_penalty must be a number, not {self.length_penalty}", "length_penalty"
            )
        if self.samples > beams:
            raise UsageError(f"{beams} beams give at most {beams} samples, not {self.samples}")
        greedy = SamplingConfig(temperature=0)
        names = [f.name for f in fields(greedy)]
        clash = [n for n in names if getattr(self.sampling, n) != getattr(greedy, n)]
        clash += [name for name in ("stop", "bias", "min_tokens") if getattr(self, name)]
        clash += ["logprobs"] if self.logprobs is not None else []
        if clash:
            raise UsageError(
                f"beams and {clash[0]} cannot go together; leave one of them out", "beams", clash[0]
            )


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token and its log-probability by the model, before any rule of sampling; in nats."""

    token: str
    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenLogprob(Logprob):
    """The same of a token that was chosen, and of the most probable ones, best first."""

    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One more token of one sample.

    `text` is what can be shown by now: it lags behind where a character is unfinished or a
    stop string may have begun. `token_id` is None when the end-of-text token ended it. There
    is a `logprob` if the config asks for it. With a constraint, `matched` says whether the text
    has ended as it demands.
    """

    sample: int
    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    logprob: ChosenLogprob | None = None
    matched: bool | None = None


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
    decoder: Reader,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    config: GenerationConfig,
    choose: Choose | None = None,
) -> Iterator[Event]:
    """Continue `prompt`, `config.samples` times at once; an event for every token.

    `choose` stands in for the sampler of these settings. Raises `UsageError` for an empty prompt.
    """
    if not prompt:
        raise UsageError("the prompt is empty")
    rows = [list(prompt) for _ in range(config.samples)]
    texts = [TextStream(tokenizer, config.stop) for _ in rows]
    matchers = _matchers(tokenizer, config)
    choose = choose or new_sampler(tokenizer, len(prompt), config, matchers).choose
    eos = None if config.ignore_eos else tokenizer.end_of_text
    active = set(range(config.samples))
    logits = decoder.prefill([fit_prompt(prompt, decoder.context_length)])
    for count in range(1, config.max_tokens + 1):
        # The one time a token that a GPU is waited for.
        ids: list[int] = choose(logits, rows).tolist()
        for i in sorted(active):
            if ids[i] == tokenizer.size:
                if not are_numbers(logits[i]):
                    raise not_numbers("the model", decoder.length)
                raise GPT2CLIError("no token is left to choose; the options ban them all")
            may_stop = count > config.min_tokens
            event = event_of(i, ids[i], texts[i], eos, may_stop, last=count == config.max_tokens)
            if matchers:
                event = _match(event, ids[i], texts[i], matchers)
            if config.logprobs is not None:
                event = replace(event, logprob=_logprob(logits, i, ids[i], tokenizer, config))
            if event.finish_reason:
                active.discard(i)
            yield event
        if not active:
            return
        for row, token_id in zip(rows, ids, strict=True):
            row.append(min(token_id, tokenizer.size - 1))  # that of a text that has ended
        if decoder.length == decoder.context_length:
            logits = decoder.prefill([slide(row, decoder.context_length) for row in rows])
        else:
            logits = decoder.step([row[-1] for row in rows])


def new_sampler(
    tokenizer: Tokenizer,
    prompt_length: int,
    config: GenerationConfig,
    matchers: Matchers | None = None,
) -> Sampler:
    """The sampler of these settings, for texts that begin with a prompt of that many tokens."""
    return Sampler(
        config.sampling,
        generators(config.seed, config.samples),
        prompt_length,
        bias=config.bias,
        end=None if config.ignore_eos else tokenizer.end_of_text,
        min_tokens=config.min_tokens,
        breakers=_holding(tokenizer, config.dry_breakers if config.sampling.dry_multiplier else ()),
        constraint=matchers.mask if matchers else None,
    )


def explain(
    decoder: Decoder, tokenizer: Tokenizer, prompt: Sequence[int], config: GenerationConfig
) -> list[Stage]:
    """What each rule of sampling does to the candidates of the first token after `prompt`."""
    logits = decoder.prefill([fit_prompt(prompt, decoder.context_length)])
    rows = [list(prompt) for _ in range(config.samples)]
    sampler = new_sampler(tokenizer, len(prompt), config, _matchers(tokenizer, config))
    return sampler.explain(logits, rows)


def _matchers(tokenizer: Tokenizer, config: GenerationConfig) -> Matchers | None:
    constraint = config.constraint
    return None if constraint is None else constraint.matchers(tokenizer, config.samples)


def _match(event: Event, token_id: int, text: TextStream, matchers: Matchers) -> Event:
    """The same event where a constraint may end the text."""
    matchers.push(event.sample, token_id)
    if event.finish_reason != "eos" and matchers.must_end(event.sample):
        # At the last token the text has been flushed already, and gives nothing more.
        event = replace(event, text=event.text + text.flush(), finish_reason="stop")
    matched = event.finish_reason is not None and matchers.matches(event.sample)
    return replace(event, matched=matched)


def _holding(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[int]:
    """The tokens whose bytes hold one of `texts`."""
    wanted = [text.encode() for text in texts]
    every = tokenizer.token_bytes() if wanted else []
    return frozenset(i for i, token in enumerate(every) if any(w in token for w in wanted))


def _logprob(
    logits: Any, row: int, token_id: int, tokenizer: Tokenizer, config: GenerationConfig
) -> ChosenLogprob:
    chosen, best = log_probabilities(logits, row, token_id, config.logprobs or 0)
    top = tuple(Logprob(tokenizer.decode([i]), i, value) for i, value in best)
    return ChosenLogprob(tokenizer.decode([token_id]), token_id, chosen, top)


def event_of(
    sample: int, token_id: int, text: TextStream, eos: int | None, may_stop: bool, last: bool
) -> Event:
    """What one more token of a sample comes to, the text before it being in `text`."""
    if token_id == eos:
        return Event(sample, None, text.flush(), "eos")
    shown = text.push(token_id, may_stop=may_stop)
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

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text that can be shown after one more token.

        Where it may not stop, no stop string ends or begins.
        """
        text = self._held + self._decoder.push(token_id)
        return self._release(text) if may_stop else text

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
