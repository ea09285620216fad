"""The results of a generation: samples, finish reasons, timings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gpt2cli.errors import GPT2CLIError
from gpt2cli.generation.request import ChosenLogprob, Event


@dataclass(slots=True)
class Sample:
    """One continuation: its text, its tokens (the one it ended before left out) and why it ended.

    `finish_reason` is None until it has ended, and stays None if it was interrupted.
    `matched` is true when it has ended as a constraint demands. `logprobs` has one entry per token
    if they were asked for; `end_logprob` is that of the token it ended before, if any.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[ChosenLogprob] = field(default_factory=list)
    matched: bool = False
    end_logprob: ChosenLogprob | None = None
    count: int = 0  # tokens generated, the one that ended the text included

    def add(self, event: Event) -> None:
        """One more token."""
        self.count += 1
        self.text += event.text
        self.finish_reason = event.finish_reason
        self.matched = bool(event.matched)
        if event.token_id is None:
            self.end_logprob = event.logprob
            return
        self.token_ids.append(event.token_id)
        if event.logprob is not None:
            self.logprobs.append(event.logprob)


@dataclass(slots=True)
class Completion:
    """All samples of one prompt, or the `error` that kept them from being written.

    `index` is the prompt's place among those given, `prompt_tokens` the length of what the model
    read of it. The same `seed` gives the same texts again. `prompt_logprobs` has one entry per
    token of the prompt if they were asked for; the first is None.
    """

    index: int
    seed: int
    prompt_tokens: int
    samples: list[Sample] = field(default_factory=list)
    error: GPT2CLIError | None = None
    prompt_logprobs: list[ChosenLogprob | None] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """One more token of one of the samples."""
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = list(event.prompt_logprobs)
        self.samples[event.sample].add(event)

    @property
    def text(self) -> str:
        """The text of the first sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        """The tokens of the first sample, end-of-text left out."""
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """Why the first sample ended: stop, length or eos."""
        return self.samples[0].finish_reason

    @property
    def logprobs(self) -> list[ChosenLogprob]:
        """The log-probabilities of the first sample's tokens, if they were asked for."""
        return self.samples[0].logprobs

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.error is not None or all(s.finish_reason for s in self.samples)


class Recorder:
    """Records events and their times: seconds to the first token, tokens per second after it.

    Events that were not `streamed` all come at the end, so their times say nothing of speed.
    """

    def __init__(self, samples: int, *, streamed: bool = True) -> None:
        self.streamed = streamed
        self.samples = [Sample() for _ in range(samples)]
        self.started = time.perf_counter()
        self.first: float | None = None
        self.last = self.started

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass the events on, recording them."""
        self.started = self.last = time.perf_counter()
        for event in events:
            self.last = time.perf_counter()
            if self.first is None:
                self.first = self.last
            self.samples[event.sample].add(event)
            yield event

    def check_matched(self, max_tokens: int) -> None:
        """Raise `GPT2CLIError` if a sample did not end as its constraint demands."""
        if cut := sum(not sample.matched for sample in self.samples):
            which = (
                f"{cut} of {len(self.samples)} samples do"
                if len(self.samples) > 1
                else ("the text does")
            )
            raise GPT2CLIError(
                f"{which} not match the constraint: max_tokens ({max_tokens}) came first; raise it",
                "max_tokens",
            )

    @property
    def tokens(self) -> int:
        """Tokens generated, over all samples."""
        return sum(len(sample.token_ids) for sample in self.samples)

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the prompt to its first new token: prefill and one choice."""
        return None if self.first is None else self.first - self.started

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding over all samples, the first token of each left out."""
        if not self.streamed:
            return None
        steps = sum(len(s.token_ids) - 1 for s in self.samples if s.token_ids)
        if self.first is None or steps < 1 or self.last <= self.first:
            return None
        return steps / (self.last - self.first)
