"""Many texts at once: which of them read how many tokens in the next step.

Texts join and leave between any two steps ("continuous batching", Yu et al. 2022, Orca, OSDI '22).
A step reads one token of every text that is being written, then as much of the waiting prompts as
its budget allows (Agrawal et al. 2023, arXiv:2308.16369): a long prompt comes in without holding
the others up. When the KV cache is full the newest text gives way, and is read again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from gpt2cli.arrays import Array, array_namespace, to_device_of
from gpt2cli.decoders.pages import PAGE, Chunk, OutOfPages, pages_for
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import GPT2CLIError
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.sequence import Ids, Sequence
from gpt2cli.sampling.sampler import choose
from gpt2cli.system.memory import SEQUENCES
from gpt2cli.text.tokenizer import Tokenizer

BATCH_TOKENS = 96  # a step of them takes a few times as long as one of a few decodes
LEAST_OF_PROMPTS = 64  # in a step, so that texts begin as fast as others end
ALL_OF_PROMPTS = 256  # in a step that nothing else waits for: the engine computes these at once

Update = tuple[int, Event | GPT2CLIError]
"""A request's number, and what has become of it: one more token, or why there are no more."""


@dataclass(eq=False, slots=True)
class _Text:
    """A sequence and its place in the decoder, of which it holds the first `held` tokens there."""

    request: int
    sequence: Sequence
    place: int | None = None
    held: int = 0
    others: list[Sequence] = field(default_factory=list)  # samples that begin when it is read

    @property
    def count(self) -> int:
        """The texts that it is or becomes."""
        return 1 + len(self.others)

    @property
    def unread(self) -> int:
        """The tokens of its window that the decoder has not read."""
        return len(self.sequence.ids) - self.sequence.start - self.held

    @property
    def pages_missing(self) -> int:
        """The pages that it needs until its window is read, and for one token more."""
        return pages_for(self.held + self.unread + 1) - pages_for(self.held)


class Scheduler:
    """Writes the texts of all requests side by side, step by step.

    At most `max_sequences` are written at once. A step reads `batch_tokens` tokens, or somewhat
    more for the sake of waiting prompts; where no text is being written, `prompt_tokens` if that
    is more. Nothing a text becomes depends on the others. One thread at a time may use it, but
    for `prepare`, `waiting` and `running`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        max_sequences: int = SEQUENCES,
        batch_tokens: int = BATCH_TOKENS,
        prompt_tokens: int = ALL_OF_PROMPTS,
    ) -> None:
        self.decoder, self._tokenizer = decoder, tokenizer
        self.max_sequences, self.batch_tokens = max_sequences, batch_tokens
        self.prompt_tokens = prompt_tokens
        self.tokens_read = 0  # in the last step
        self._waiting: deque[_Text] = deque()
        self._running: list[_Text] = []  # the oldest first
        self._requests = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._running)

    @property
    def waiting(self) -> int:
        """The texts that wait for room."""
        return sum(text.count for text in tuple(self._waiting))

    @property
    def running(self) -> int:
        """The texts that are being read or written."""
        return sum(text.count for text in tuple(self._running))

    def prepare(self, prompt: Ids, config: GenerationConfig) -> list[Sequence]:
        """A prompt that is to be continued `config.samples` times: its samples, for `queue`.

        It changes nothing here, so any thread may call it. Raises `UsageError` for a prompt that
        is empty or longer than the context, and what a constraint raises that cannot be kept.
        """
        first = Sequence(self._tokenizer, self.decoder.context_length, prompt, config)
        return [first, *(first.another(sample) for sample in range(1, config.samples))]

    def queue(self, samples: list[Sequence]) -> int:
        """Queue the samples of a request. → its number"""
        first, *others = samples
        self._requests += 1
        self._waiting.append(_Text(self._requests, first, others=others))
        return self._requests

    def add(self, prompt: Ids, config: GenerationConfig) -> int:
        """`prepare` a request and `queue` it. → its number"""
        return self.queue(self.prepare(prompt, config))

    def cancel(self, request: int) -> None:
        """Forget a request at once; nothing if it has ended."""
        self._waiting = deque(text for text in self._waiting if text.request != request)
        for text in [text for text in self._running if text.request == request]:
            self._leave(text)

    def step(self) -> list[Update]:
        """Read, choose a token for every text that has been read, and say what has become of it.

        Raises `WeightsError` if the model's numbers are not finite, `GPT2CLIError` if a text does
        not fit the KV cache even alone.
        """
        self._admit()
        if not self._running:
            return []
        reading, logits = self._read()
        self.tokens_read = sum(len(chunk.ids) for _, chunk in reading)
        ready: list[tuple[_Text, int]] = []
        end = 0
        for text, chunk in reading:
            begin, end = end, end + (len(chunk.ids) if chunk.every else 1)
            if chunk.every:
                text.sequence.measure(chunk.start, logits[begin:end])
            text.held += len(chunk.ids)
            if not text.unread:
                ready += [(each, end - 1) for each in self._begun(text)]
        return list(self._write(ready, logits)) if ready else []

    def _admit(self) -> None:
        """Let texts begin, in the order they came, while there is room for all of each."""
        room = self.decoder.free_pages - sum(text.pages_missing for text in self._running)
        while self._waiting and len(self._running) < self.max_sequences:
            room -= self._waiting[0].pages_missing
            if room < 0 and self._running:
                return
            text = self._waiting.popleft()
            text.place = self.decoder.open()
            self._running.append(text)

    def _read(self) -> tuple[list[tuple[_Text, Chunk]], Array]:
        """Read one step's chunks; the newest texts give way until they fit."""
        while True:
            reading = self._plan()
            try:
                return reading, self.decoder.read([chunk for _, chunk in reading])
            except OutOfPages:
                if len(self._running) == 1:
                    self._leave(self._running[0])
                    raise GPT2CLIError("the KV cache is too small for one text") from None
                self._give_way(self._running[-1])

    def _plan(self) -> list[tuple[_Text, Chunk]]:
        """The next chunk of each text: decodes first, then prompts as far as the budget goes."""
        decoding = [text for text in self._running if text.unread == 1]
        chunks = [(text, self._chunk(text, 1)) for text in decoding]
        budget = max(self.batch_tokens - len(chunks), LEAST_OF_PROMPTS)
        if not chunks:
            budget = max(budget, self.prompt_tokens)
        for text in self._running:
            if text.unread > 1 and budget > 0:
                self._share(text)
                if not any(_brings(other, text) for other, _ in chunks):
                    chunks.append((text, self._chunk(text, min(text.unread, budget))))
                    budget -= len(chunks[-1][1].ids)
        return chunks

    def _chunk(self, text: _Text, count: int) -> Chunk:
        assert text.place is not None
        begin = text.sequence.start + text.held
        ids = text.sequence.ids[begin : begin + count]
        return Chunk(text.place, text.held, ids, text.sequence.measures(begin + count))

    def _share(self, text: _Text) -> None:
        """Skip what others have read of the same beginning."""
        assert text.place is not None
        if text.held % PAGE == 0 and text.unread > PAGE:
            ids = text.sequence.sharable
            if len(ids) - text.held > PAGE:
                text.held = self.decoder.share(text.place, ids)

    def _begun(self, text: _Text) -> list[_Text]:
        """A text that has been read, and the other samples that share its prompt."""
        assert text.place is not None
        new = [
            _Text(text.request, other, self.decoder.fork(text.place), text.held)
            for other in text.others
        ]
        text.others = []
        at = self._running.index(text) + 1
        self._running[at:at] = new
        return [text, *new]

    def _write(self, ready: list[tuple[_Text, int]], logits: Array) -> Iterator[Update]:
        """Choose and append a token for each text, from its row of the logits."""
        logits = _rows(logits, [row for _, row in ready])
        sequences = [text.sequence for text, _ in ready]
        ids = choose(
            logits,
            [each.sampler for each in sequences],
            [each.ids for each in sequences],
            self.decoder.draw,
        )
        failed = set()
        for i, (text, _) in enumerate(ready):
            if text.request in failed:
                continue
            try:
                event = text.sequence.append(ids[i], logits[i : i + 1])
            except GPT2CLIError as error:
                failed.add(text.request)
                self.cancel(text.request)
                yield text.request, error
                continue
            if event.finish_reason:
                self._leave(text)
            elif text.unread != 1:  # the window has slid: all positions are new
                self._reopen(text)
            yield text.request, event

    def _reopen(self, text: _Text) -> None:
        assert text.place is not None
        self.decoder.close(text.place)
        text.place, text.held = self.decoder.open(), 0

    def _give_way(self, text: _Text) -> None:
        """Let a text wait until there is room again."""
        self._leave(text)
        text.place, text.held = None, 0
        self._waiting.appendleft(text)

    def _leave(self, text: _Text) -> None:
        assert text.place is not None
        self._running.remove(text)
        self.decoder.close(text.place)


def _rows(logits: Array, rows: list[int]) -> Array:
    """Some rows of the logits; without a copy if they are the first ones, or one."""
    if rows == list(range(len(rows))):
        return logits[: len(rows)]
    if len(rows) == 1:
        return logits[rows[0] : rows[0] + 1]
    xp = array_namespace(logits)
    return xp.take(logits, to_device_of(logits, np.array(rows)), axis=0)


def _brings(other: _Text, text: _Text) -> bool:
    """Whether `other`, which reads in this step, reads a page that `text` needs next."""
    end = text.held + PAGE
    if other.held > text.held or other.unread == 1 or text.unread <= PAGE:
        return False
    mine, its = text.sequence.sharable, other.sequence.window
    return len(mine) > end and len(its) >= end and mine[:end] == its[:end]
