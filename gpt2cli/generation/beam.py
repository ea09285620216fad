"""Beam search: the most probable text found by keeping the best few beginnings.

Nothing is drawn. The scoring is that of transformers: the sum of log-probabilities over
length ** length_penalty (Wu et al. 2016, arXiv:1609.08144, section 7, in a simpler form),
where the end-of-text token counts; so is when to stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from array_api_compat import device

from gpt2cli.arrays import Array, are_numbers, array_namespace
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import not_numbers
from gpt2cli.generation.request import Event, FinishReason, GenerationConfig
from gpt2cli.generation.sequence import event_of
from gpt2cli.progress import Advance
from gpt2cli.sampling.rules import keep_top_k, log_softmax
from gpt2cli.text.stream import TextStream
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import check_prompt, slide

IMPOSSIBLE = -1e9  # score of rows that must not win


@dataclass(frozen=True, slots=True)
class Beam:
    """Some tokens after the prompt; `score` is their log-probability, scaled once finished."""

    ids: tuple[int, ...]
    score: float


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    config: GenerationConfig,
    advance: Advance = lambda _: None,
) -> Iterator[Event]:
    """The events of the `config.samples` best texts, best first, after the search."""
    eos = None if config.ignore_eos else tokenizer.end_of_text
    ends: dict[int, FinishReason] = {} if eos is None else {eos: "eos"}
    found = search(decoder, prompt, config, eos, advance)
    for i, beam in enumerate(found[: config.samples]):
        text = TextStream(tokenizer)
        for n, token_id in enumerate(beam.ids, start=1):
            yield event_of(i, token_id, text, ends, may_stop=False, last=n == config.max_tokens)


def search(
    decoder: Decoder,
    prompt: Sequence[int],
    config: GenerationConfig,
    eos: int | None,
    advance: Advance = lambda _: None,
) -> list[Beam]:
    """The best `config.beams` finished beams, by score."""
    width, penalty = config.beams or 1, config.length_penalty
    # There is only the prompt at first; other rows begin with a score that must not win.
    running = [Beam((), 0.0 if i == 0 else IMPOSSIBLE) for i in range(width)]
    finished: list[Beam] = []
    with closing(_Rows(decoder, prompt)) as rows:
        rows.begin(width)
        for length in range(1, config.max_tokens + 1):
            advance(1)
            longer, parents = [], []
            for rank, (row, token_id, score) in enumerate(_best(rows.logits, running, 2 * width)):
                beam = Beam((*running[row].ids, token_id), score)
                if token_id != eos and length < config.max_tokens:
                    longer.append(beam)
                    parents.append(row)
                elif rank < width:
                    finished.append(Beam(beam.ids, score / length**penalty))
            finished = sorted(finished, key=lambda beam: -beam.score)[:width]
            running, parents = longer[:width], parents[:width]
            if not running:
                break
            best_to_come = running[0].score / length**penalty
            if len(finished) == width and best_to_come <= finished[-1].score:
                break
            rows.read(parents, [beam.ids[-1] for beam in running])
    return finished


class _Rows:
    """The texts of the running beams: forks of one another, so that they share what is common."""

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        check_prompt(prompt, decoder.context_length)
        self._decoder = decoder
        self._texts = [list(prompt)]
        self._places = [decoder.open()]

    def begin(self, width: int) -> None:
        """Read the prompt, of which each row is a copy. → `logits` (B, V)"""
        logits = self._decoder.read([Chunk(self._places[0], 0, self._texts[0])])
        self._texts *= width
        self._places += [self._decoder.fork(self._places[0]) for _ in range(width - 1)]
        self.logits = self._checked(array_namespace(logits).concat([logits] * width, axis=0))

    def read(self, parents: Sequence[int], ids: Sequence[int]) -> None:
        """Become these rows, in this order, each with one more token. → `logits` (B, V)"""
        texts = [[*self._texts[row], i] for row, i in zip(parents, ids, strict=True)]
        limit = self._decoder.context_length
        if len(texts[0]) > limit:
            texts = [slide(text, limit) for text in texts]
            places, start = [self._decoder.open() for _ in texts], 0
        else:
            places, start = [self._decoder.fork(self._places[row]) for row in parents], -1
        self.close()
        self._texts, self._places = texts, places
        chunks = [
            Chunk(place, start % len(text), text[start:])
            for place, text in zip(places, texts, strict=True)
        ]
        self.logits = self._checked(self._decoder.read(chunks))

    def close(self) -> None:
        """Leave the places in the decoder."""
        for place in self._places:
            self._decoder.close(place)
        self._places = []

    def _checked(self, logits: Array) -> Array:
        if not are_numbers(logits):
            raise not_numbers("the model", len(self._texts[0]))
        return logits


def _best(logits: Array, running: Sequence[Beam], count: int) -> list[tuple[int, int, float]]:
    """The `count` most probable continuations, as (row, token id, score), best first."""
    xp = array_namespace(logits)
    so_far = xp.asarray([beam.score for beam in running], dtype=logits.dtype, device=device(logits))
    scores = log_softmax(logits) + so_far[:, None]
    kept = keep_top_k(xp.reshape(scores, (1, -1)), count)[0, :]
    (places,) = xp.nonzero(kept > -xp.inf)
    ways = zip(places.tolist(), kept[places].tolist(), strict=True)
    size = logits.shape[1]
    ranked = sorted(ways, key=lambda way: -way[1])
    return [(place // size, place % size, score) for place, score in ranked]
