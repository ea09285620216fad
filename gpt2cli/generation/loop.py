"""The loop that turns a prompt into text: prefill, choose, stop, slide the context.

It knows a model only through the `Decoder` protocol, yields events and never prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from gpt2cli.arrays import are_numbers
from gpt2cli.decoders.protocol import Decoder, Reader, Rows
from gpt2cli.errors import GPT2CLIError, not_numbers
from gpt2cli.generation.request import ChosenLogprob, Event, GenerationConfig, Logprob
from gpt2cli.sampling.constraint import Matchers
from gpt2cli.sampling.rules import generators, log_probabilities
from gpt2cli.sampling.sampler import Sampler, Stage
from gpt2cli.text.stream import TextStream
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import check_prompt, slide

Choose = Callable[[Any, Rows], Any]  # (B, V) logits and B texts → (B,) ids


def generate(
    decoder: Reader,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    config: GenerationConfig,
    choose: Choose | None = None,
) -> Iterator[Event]:
    """Continue `prompt`, `config.samples` times at once; an event for every token.

    `choose` replaces the sampler of these settings. Raises `UsageError` for a prompt that is
    empty, or longer than the context: see `text.window`.
    """
    check_prompt(prompt, decoder.context_length)
    rows = [list(prompt) for _ in range(config.samples)]
    texts = [TextStream(tokenizer, config.stop) for _ in rows]
    matchers = _matchers(tokenizer, config)
    choose = choose or new_sampler(tokenizer, len(prompt), config, matchers).choose
    eos = None if config.ignore_eos else tokenizer.end_of_text
    active = set(range(config.samples))
    logits = decoder.prefill([list(prompt)])
    for count in range(1, config.max_tokens + 1):
        # The only wait for a GPU per token.
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
            row.append(min(token_id, tokenizer.size - 1))  # of a text that has ended
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
    """The sampler of these settings, for texts that begin with `prompt_length` prompt tokens."""
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
    check_prompt(prompt, decoder.context_length)
    logits = decoder.prefill([list(prompt)])
    rows = [list(prompt) for _ in range(config.samples)]
    sampler = new_sampler(tokenizer, len(prompt), config, _matchers(tokenizer, config))
    return sampler.explain(logits, rows)


def _matchers(tokenizer: Tokenizer, config: GenerationConfig) -> Matchers | None:
    constraint = config.constraint
    return None if constraint is None else constraint.matchers(tokenizer, config.samples)


def _match(event: Event, token_id: int, text: TextStream, matchers: Matchers) -> Event:
    """The event, ended if the constraint allows no further token."""
    matchers.push(event.sample, token_id)
    if event.finish_reason != "eos" and matchers.must_end(event.sample):
        # At the last token the text has been flushed already, and gives nothing more.
        event = replace(event, text=event.text + text.flush(), finish_reason="stop")
    matched = event.finish_reason is not None and matchers.matches(event.sample)
    return replace(event, matched=matched)


def _holding(tokenizer: Tokenizer, texts: Sequence[str]) -> frozenset[int]:
    """The ids of tokens whose bytes contain one of `texts`."""
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
    """The event for one more token of a sample; `text` is the stream of the text before it."""
    if token_id == eos:
        return Event(sample, None, text.flush(), "eos")
    shown = text.push(token_id, may_stop=may_stop)
    if text.stopped:
        return Event(sample, token_id, shown, "stop")
    if last:
        return Event(sample, token_id, shown + text.flush(), "length")
    return Event(sample, token_id, shown)
