"""Writes the texts of records again, many at once, and compares each with what it was.

What a sample becomes depends on its prompt, settings, seed and number alone, so each is written by
itself, whatever was written beside it before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpt2cli.config.interventions import Interventions
from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.generation import beam, speculative
from gpt2cli.generation.record import Completion, Sample
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.sequence import Sequence as Text
from gpt2cli.serving import choices
from gpt2cli.serving.replaying import comparing
from gpt2cli.serving.replaying.comparing import Change, Difference
from gpt2cli.serving.replaying.record import Draft, Place, Record, Refused, Written
from gpt2cli.serving.replaying.weighing import Weighed, weigh
from gpt2cli.system.memory import check_beams

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.scheduler import Scheduler
    from gpt2cli.text.tokenizer import Tokenizer

AROUND = 12  # tokens that are shown before and after a difference
BLOCK = 1024  # records that are in memory at once


@dataclass(frozen=True, slots=True)
class Seen:
    """A difference as it can be shown: both tokens, the text around them, and their chances.

    The recorded one comes first; it is None where it is not known.
    """

    at: Difference
    tokens: tuple[str | None, str | None]
    before: str
    after: tuple[str, str]
    weighed: Weighed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a text: the same, or else what is `different`, or an `error`."""

    name: str
    model: str = ""
    tokens: int = 0
    different: Seen | None = None
    error: GPT2CLIError | None = None
    changes: tuple[Change, ...] = ()
    unsaid: tuple[str, ...] = ()
    is_text: bool = True  # else there is nothing to write again

    @property
    def status(self) -> str:
        """same, different, error or skipped."""
        if not self.is_text:
            return "skipped"
        return "error" if self.error is not None else "different" if self.different else "same"


Open = Callable[[Place], "LoadedModel"]
"""Opens the model of a place, as far as it can be had. Raises `GPT2CLIError`."""


def repeat(given: Iterable[Record | Refused], open: Open) -> Iterator[Outcome]:
    """The outcome of every text, in order; `open` is asked once for each place in a block."""
    held: dict[Place, _Writing] = {}
    for block in _blocks(given):
        outcomes: dict[int, list[Outcome]] = {}
        places: dict[Place, list[int]] = {}
        for i, each in enumerate(block):
            if isinstance(each, Refused):
                outcomes[i] = [Outcome(each.name, error=each.error, is_text=each.is_text)]
            else:
                places.setdefault(each.place, []).append(i)
        for place, numbers in places.items():
            records = [each for i in numbers if isinstance(each := block[i], Record)]
            try:
                if place not in held:
                    held.clear()  # its memory is for the next
                    held[place] = _Writing(open(place), open)
                found = held[place].outcomes(records)
            except GPT2CLIError as error:
                found = [_all_failed(record, error) for record in records]
            outcomes |= dict(zip(numbers, found, strict=True))
        for i in range(len(block)):
            yield from outcomes[i]


def _all_failed(record: Record, error: GPT2CLIError) -> list[Outcome]:
    return [Outcome(text.name, record.place.model, error=error) for text in record.texts]


def _blocks(found: Iterable[Record | Refused]) -> Iterator[list[Record | Refused]]:
    block: list[Record | Refused] = []
    for each in found:
        block.append(each)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


@dataclass
class _Work:
    """A record made ready, and its samples by number."""

    record: Record
    ids: list[int] = field(default_factory=list)
    config: GenerationConfig = field(default_factory=GenerationConfig)
    samples: dict[int, Sample] = field(default_factory=dict)
    error: GPT2CLIError | None = None


class _Writing:
    """A model that is open, and its batch."""

    def __init__(self, model: LoadedModel, open: Open) -> None:
        self._model, self._open = model, open
        self._scheduler: Scheduler = model.scheduler()
        self._facts = _facts(model)

    @property
    def _tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    @property
    def _decoder(self) -> Decoder:
        return self._scheduler.decoder

    def outcomes(self, records: Sequence[Record]) -> list[list[Outcome]]:
        """What has become of the texts of each record."""
        works = [_Work(record) for record in records]
        texts: dict[int, tuple[_Work, Sample]] = {}
        for work in works:
            try:
                self._begin(work, texts)
            except WeightsError:
                raise
            except GPT2CLIError as error:
                work.error = error
        while self._scheduler.busy:
            for request, what in self._scheduler.step():
                work, sample = texts[request]
                if isinstance(what, GPT2CLIError):
                    work.error = what
                else:
                    sample.add(what)
        return [self._compared(work) for work in works]

    def _begin(self, work: _Work, texts: dict[int, tuple[_Work, Sample]]) -> None:
        """Queue the samples of a record, or write them where they need the model alone."""
        record = work.record
        work.ids, config = record.prepare(self._model)
        work.config = config = _limited(config, record)
        numbers = range(record.candidates) if record.answer else [t.sample for t in record.texts]
        if record.answer:
            work.config = config = replace(config, logprobs=0)
        work.samples = {number: Sample() for number in numbers}
        if config.beams is not None:
            self._search(work)
        elif record.draft is not None and _needs_draft(work):
            self._draft(work, record.draft)
        else:
            length, tokenizer = self._decoder.context_length, self._tokenizer
            every = [Text(tokenizer, length, work.ids, config, n) for n in numbers]
            for number, text in zip(numbers, every, strict=True):
                texts[self._scheduler.queue([text])] = work, work.samples[number]

    def _search(self, work: _Work) -> None:
        """Write by beam search."""
        beams, most = work.config.beams or 1, len(work.ids) + work.config.max_tokens
        model = self._model
        capacity = min(most, self._decoder.context_length)
        check_beams(model.config, model.placement, beams, capacity)
        for event in beam.generate(self._decoder, self._tokenizer, work.ids, work.config):
            if event.sample in work.samples:
                work.samples[event.sample].add(event)

    def _draft(self, work: _Work, draft: Draft) -> None:
        """Write with a draft, as one sample is."""
        proposing: speculative.Draft
        if draft.name == speculative.NGRAM:
            proposing = speculative.NgramDraft()
        else:
            place = replace(
                work.record.place, model=draft.name, adapters=(), interventions=Interventions()
            )
            model = self._open(place)
            names = model.name, self._model.name
            speculative.check_vocabulary(names, (model.tokenizer, self._tokenizer))
            proposing = speculative.ModelDraft(model.decoder())
        stats = speculative.DraftStats()
        (sample,) = work.samples.values()
        for event in speculative.generate(
            self._decoder, proposing, self._tokenizer, work.ids, work.config, stats, draft.tokens
        ):
            sample.add(event)

    def _compared(self, work: _Work) -> list[Outcome]:
        record, name = work.record, self._model.describe()
        if work.error is not None:
            return [Outcome(text.name, name, error=work.error) for text in record.texts]
        samples = work.samples
        if record.answer is not None:
            every = [samples[i] for i in range(record.candidates)]
            found = Completion(0, work.config.seed, len(work.ids), every)
            samples = dict(enumerate(choices.shown_of(found, record.answer)))
        draft = record.draft
        now = {**self._facts, "draft": draft.name if draft and _needs_draft(work) else None}
        changed = tuple(comparing.changes(record.facts, now))
        unsaid = tuple(comparing.unsaid(record.facts, now))
        outcomes = []
        for text in record.texts:
            sample = samples[text.sample]
            difference = comparing.first_difference(text, sample, self._tokenizer)
            seen = None
            if difference is not None:
                seen = self._seen(work, text, sample, difference)
            count = len(sample.token_ids) if text.ids is None else len(text.ids)
            count -= text.offset
            outcomes.append(Outcome(text.name, name, count, seen, None, changed, unsaid))
        return outcomes

    def _seen(self, work: _Work, text: Written, sample: Sample, at: Difference) -> Seen:
        tokenizer, k = self._tokenizer, at.position
        same = sample.token_ids[:k]
        before = tokenizer.decode([*work.ids, *same][-AROUND:])
        after_now = tokenizer.decode(sample.token_ids[k + 1 : k + 1 + AROUND])
        if text.ids is not None:
            size = tokenizer.size
            shown = [i for i in text.ids[k + 1 : k + 1 + AROUND] if i < size]
            after = tokenizer.decode(shown)
        else:
            skipped = len(tokenizer.decode(same)) + len(self._shown(at.recorded) or "")
            after = (text.text or "")[skipped : skipped + 4 * AROUND]
        number = next(n for n, each in work.samples.items() if each is sample)
        weighed = weigh(
            self._decoder, tokenizer, work.ids, work.config, number, same, (at.recorded, at.now)
        )
        names = self._shown(at.recorded), self._shown(at.now)
        return Seen(at, names, before, (after, after_now), weighed)

    def _shown(self, token: int | None) -> str | None:
        if token is None:
            return None
        return self._tokenizer.show(token) if token < self._tokenizer.size else f"#{token}"


def _needs_draft(work: _Work) -> bool:
    """Whether another text would be drawn without the draft; a greedy one is the same."""
    return work.record.draft is not None and work.config.sampling.temperature > 0


def _limited(config: GenerationConfig, record: Record) -> GenerationConfig:
    """The settings for no more tokens than can be compared, and some that are shown.

    Where a text ends by its length does not change the tokens before.
    """
    needed = max(_most_tokens(text, config) for text in record.texts) + 1 + AROUND
    if config.beams is not None or (not record.texts[0].is_part and config.max_tokens <= needed):
        return config
    least = min(config.min_tokens, needed)
    return replace(config, max_tokens=needed, min_tokens=least, samples=1)


def _most_tokens(text: Written, config: GenerationConfig) -> int:
    """The most tokens that a text may be of; each has a byte at least, and so has a stop."""
    if text.ids is not None:
        return len(text.ids)
    stops = max((len(stop.encode()) for stop in config.stop), default=0)
    return len((text.text or "").encode()) + stops


def _facts(model: LoadedModel) -> Mapping[str, Any]:
    """The model's facts and its weights, as `gpt2 bulk` writes them down."""
    from gpt2cli.serving import state

    return {**state.describe(model, {}), **model.facts(), "compiled": False}
