"""One text that is being written: its tokens, its settings, and what they have become so far."""

from __future__ import annotations

from collections import abc
from dataclasses import replace

from gpt2cli.arrays import Array, are_numbers, in_host_memory
from gpt2cli.errors import GPT2CLIError, UsageError, not_numbers
from gpt2cli.generation.request import (
    ChosenLogprob,
    Event,
    FinishReason,
    GenerationConfig,
    Logprob,
)
from gpt2cli.sampling.constraint import Matcher
from gpt2cli.sampling.rules import generator, log_probabilities, ranks
from gpt2cli.sampling.sampler import Draw, Proposal, Sampler
from gpt2cli.text.stream import TextStream
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import check_prompt, slide

Ids = abc.Sequence[int]


class Sequence:
    """A prompt and its continuation, token by token.

    It has all that the next token depends on besides the model: settings, random numbers,
    penalties, a constraint. So a text is the same whatever is written beside it. `ids` are the
    prompt and the tokens chosen so far. Raises `UsageError` for a prompt that is empty or longer
    than the context.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_length: int,
        prompt: Ids,
        config: GenerationConfig,
        sample: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        check_prompt(prompt, context_length)
        for name, ids in (("bias", config.bias), ("stop_token_ids", config.stop_token_ids)):
            if not all(0 <= i < tokenizer.size for i in ids):
                raise UsageError(
                    f"{name} must be for token ids from 0 to {tokenizer.size - 1}", name
                )
        if matcher is None and config.constraint is not None:
            matcher = config.constraint.matcher(tokenizer)
        self.ids = list(prompt)
        self.start = 0  # of the window: the tokens that the model attends to
        self.prompt_length = len(self.ids)
        self.config, self.sample = config, sample
        self.finish_reason: FinishReason | None = None
        self._tokenizer, self._context_length = tokenizer, context_length
        self._ends: dict[int, FinishReason] = dict.fromkeys(config.stop_token_ids, "stop")
        if tokenizer.end_of_text is not None and not config.ignore_eos:
            self._ends[tokenizer.end_of_text] = "eos"
        self.sampler = self._new_sampler(matcher)
        self._matcher = matcher
        self._text = TextStream(tokenizer, config.stop)
        self._prompt_logprobs: list[ChosenLogprob | None] = []
        if config.prompt_logprobs is not None and sample == 0:
            self._prompt_logprobs = [None]

    @property
    def window(self) -> list[int]:
        """The tokens that the model attends to next."""
        return self.ids[self.start :]

    @property
    def sharable(self) -> list[int]:
        """The tokens of the window that may be held without reading them, but for the last."""
        found = len(self._prompt_logprobs)
        return self.ids[:found] if 0 < found < self.prompt_length else self.window

    @property
    def started(self) -> bool:
        """Whether a token has been chosen."""
        return len(self.ids) > self.prompt_length

    @property
    def tokens_left(self) -> int:
        """How many more tokens it may become."""
        return self.config.max_tokens - (len(self.ids) - self.prompt_length)

    def another(self, sample: int) -> Sequence:
        """Another sample of the same request, before its first token."""
        matcher = None if self._matcher is None else self._matcher.copy()
        prompt, context_length = self.ids[: self.prompt_length], self._context_length
        return Sequence(self._tokenizer, context_length, prompt, self.config, sample, matcher)

    def follow(self, ids: Ids) -> None:
        """Append tokens that were chosen before, as this text would have chosen them.

        What mirostat has learned of them is not known.
        """
        self.sampler.skip(len(ids))
        for token_id in ids:
            if self._matcher is not None:
                self._matcher.push(token_id)
            self.ids.append(token_id)

    def measures(self, end: int) -> bool:
        """Whether `measure` wants logits after any of the first `end` tokens of the prompt."""
        return 0 < len(self._prompt_logprobs) <= min(end, self.prompt_length - 1)

    def measure(self, begin: int, logits: Array) -> None:
        """Note the log-probabilities of the prompt's tokens that follow those from `begin` on.

        The logits (N, V) are those after each of N tokens; what is known already is left out.
        """
        found = len(self._prompt_logprobs)
        targets = self.ids[found : min(begin + len(logits) + 1, self.prompt_length)]
        rows = logits[found - 1 - begin :][: len(targets)]
        self._prompt_logprobs += self._logprobs(targets, rows, self.config.prompt_logprobs or 0)

    def choose(
        self, logits: Array, proposal: Proposal | None = None, draw: Draw | None = None
    ) -> Event:
        """Choose the next token and append it. (1, V)"""
        return self.append(self.sampler.choose(logits, self.ids, proposal, draw), logits)

    def append(self, token_id: int, logits: Array) -> Event:
        """Append a token that was chosen from `logits` (1, V).

        Raises `GPT2CLIError` where none was left to choose, and `WeightsError` where the logits
        are not finite.
        """
        if token_id == self._tokenizer.size:
            if not are_numbers(logits):
                raise not_numbers("the model", len(self.window))
            if self._matcher is not None:
                self._matcher.check()
            raise GPT2CLIError("no token is left to choose; the options ban them all")
        event = self._event(token_id)
        self.finish_reason = event.finish_reason
        if (count := self.config.logprobs) is not None:
            event = replace(event, logprob=self._logprobs([token_id], logits, count)[0])
        if not self.started and len(self._prompt_logprobs) == self.prompt_length:
            event = replace(event, prompt_logprobs=tuple(self._prompt_logprobs))
        self.ids.append(token_id)
        if len(self.window) > self._context_length:
            self.start = len(self.ids) - len(slide(self.window, self._context_length))
        return event

    def _new_sampler(self, matcher: Matcher | None) -> Sampler:
        config, tokenizer = self.config, self._tokenizer
        breakers = config.dry_breakers if config.sampling.dry_multiplier else ()
        return Sampler(
            config.sampling,
            generator(config.seed, self.sample),
            self.prompt_length,
            bias=config.bias,
            ends=tuple(self._ends),
            min_tokens=config.min_tokens,
            breakers=_holding(tokenizer, breakers),
            matcher=matcher,
        )

    def _event(self, token_id: int) -> Event:
        count = len(self.ids) - self.prompt_length + 1
        last, may_stop = count == self.config.max_tokens, count > self.config.min_tokens
        event = event_of(self.sample, token_id, self._text, self._ends, may_stop, last)
        return event if self._matcher is None else self._match(event, token_id, self._matcher)

    def _match(self, event: Event, token_id: int, matcher: Matcher) -> Event:
        """The event, ended if the constraint allows no further token."""
        matcher.push(token_id)
        if event.finish_reason != "eos" and matcher.must_end():
            # At the last token the text has been flushed already, and gives nothing more.
            event = replace(event, text=event.text + self._text.flush(), finish_reason="stop")
        return replace(event, matched=event.finish_reason is not None and matcher.matches())

    def _logprobs(self, ids: Ids, logits: Array, count: int) -> list[ChosenLogprob]:
        """Those of a token for each row of the logits. (N,), (N, V)"""
        decode, host = self._tokenizer.decode, in_host_memory(logits)
        logits = logits if host is None else host
        found, places = log_probabilities(logits, ids, count), ranks(logits, ids)
        return [
            ChosenLogprob(
                decode([token_id]),
                token_id,
                value,
                tuple(Logprob(decode([i]), i, other) for i, other in best),
                rank,
            )
            for token_id, (value, best), rank in zip(ids, found, places, strict=True)
        ]


def event_of(
    sample: int,
    token_id: int,
    text: TextStream,
    ends: abc.Mapping[int, FinishReason],
    may_stop: bool,
    last: bool,
) -> Event:
    """The event for one more token of a sample; `text` is the stream of the text before it.

    The text ends before a token of `ends`, for the reason given there.
    """
    if (reason := ends.get(token_id)) is not None:
        return Event(sample, None, text.flush(), reason)
    shown = text.push(token_id, may_stop=may_stop)
    if text.stopped:
        return Event(sample, token_id, shown, "stop")
    if last:
        return Event(sample, token_id, shown + text.flush(), "length")
    return Event(sample, token_id, shown)


def _holding(tokenizer: Tokenizer, texts: abc.Sequence[str]) -> frozenset[int]:
    """The ids of tokens whose bytes contain one of `texts`."""
    wanted = [text.encode() for text in texts]
    every = tokenizer.token_bytes() if wanted else []
    return frozenset(i for i, token in enumerate(every) if any(w in token for w in wanted))
