"""Any number of prompts to completions, with memory for a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.generation.batcher import Batcher, Inbox
from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.sequence import Ids

WINDOW = 1024  # how far the newest text may be ahead of the oldest one that is not finished


class Prepared(NamedTuple):
    """A prompt in tokens, its settings, and its completion, which is to be filled in."""

    completion: Completion
    ids: Ids
    config: GenerationConfig | None  # None if the completion already has an error


def complete(
    batcher: Batcher, prompts: Iterable[Prepared], *, ordered: bool = True
) -> Iterator[Completion]:
    """The completions of all prompts, in their order or as they finish.

    Prompts are taken as the batch has room for them. A prompt that fails has its `error` set.
    Raises `WeightsError` if the model's numbers are not finite: then all would fail.
    """
    inbox = Inbox(batcher)
    try:
        yield from _Completing(batcher, inbox, iter(prompts), ordered).all()
    finally:
        inbox.close()


class _Completing:
    def __init__(
        self, batcher: Batcher, inbox: Inbox, prompts: Iterator[Prepared], ordered: bool
    ) -> None:
        self._inbox, self._prompts, self._ordered = inbox, prompts, ordered
        # As many again as are written at once, so that none of the places is ever empty.
        self._most_open = 2 * batcher.scheduler.max_sequences
        self._open: dict[int, Completion] = {}
        self._finished: dict[int, Completion] = {}
        self._taken = self._given = 0

    def all(self) -> Iterator[Completion]:
        """The completions, as they can be given."""
        while True:
            more = self._take()
            yield from self._ready()
            if self._open:
                self._hear(*self._inbox.wait())
            elif not more and not self._finished:
                return

    def _take(self) -> bool:
        """Take prompts while there is room. → whether there may be more"""
        while len(self._open) < self._most_open and self._taken - self._given < WINDOW:
            prompt = next(self._prompts, None)
            if prompt is None:
                return False
            completion, key = prompt.completion, self._taken
            self._taken += 1
            if prompt.config is None:
                self._finished[key] = completion
            else:
                completion.samples = [Sample() for _ in range(prompt.config.samples)]
                self._open[key] = completion
                self._inbox.add(key, prompt.ids, prompt.config)
        return True

    def _hear(self, key: int, what: Event | GPT2CLIError) -> None:
        completion = self._open[key]
        if isinstance(what, WeightsError):
            raise what
        if isinstance(what, GPT2CLIError):
            completion.error = what
        else:
            completion.add(what)
        if completion.finished:
            self._inbox.done(key)
            self._finished[key] = self._open.pop(key)

    def _ready(self) -> Iterator[Completion]:
        """What can be given now: the next in order, or all that have finished."""
        while self._finished:
            key = self._given if self._ordered else next(iter(self._finished))
            if key not in self._finished:
                return
            self._given += 1
            yield self._finished.pop(key)
