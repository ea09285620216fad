"""Windows of many texts read side by side, and how probable each of their tokens is.

Each call to the decoder reads n tokens of however many windows: a text of any length lies
beside others of any length, without padding. What is found does not depend on the neighbours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import NDArray, array_namespace
from gpt2cli.decoders.pages import PAGE, Chunk, pages_for
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.progress import Advance

# Tokens whose logits are held at once (51 MB with OpenAI's vocabulary; 823 MB on a GPU), and of
# these the tokens whose surprisal is computed at once, so that a CPU's cache holds their logits.
LOGITS_TOKENS, CACHE_TOKENS = 256, 8
GPU_LOGITS_TOKENS, GPU_CACHE_TOKENS = 4096, 1024


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens `first` to `end` of a text, to be predicted from those that begin at `begin`."""

    text: int
    begin: int
    first: int
    end: int

    @property
    def context(self) -> int:
        """The number of tokens before the one that the first prediction follows."""
        return self.first - 1 - self.begin


def measure(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    plan: Iterable[Window],
    *,
    stem: int | None = None,
    block: int = LOGITS_TOKENS,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[Window, NDArray, NDArray]]:
    """Bits and ranks of each window's new tokens, (N,) both, in the order of the plan.

    `block` tokens are read at once, of no more windows than the KV cache has room for; it must
    hold the longest. `stem` is a sequence that has read the context of all windows, where it is
    the same; it stays open. `advance` is told the tokens that were measured.
    """
    packer = _Packer(decoder, texts, plan, stem)
    try:
        while packer.waits():
            advance(packer.step(block))
            yield from packer.finished()
    finally:
        packer.close()


@dataclass(slots=True)
class _Reading:
    """A window being read, or one that waits for those before it to be done."""

    window: Window
    ids: Sequence[int]  # (T,): the context, and the tokens that follow each other from there
    sequence: int
    held: int  # tokens that the sequence has read
    pages: int  # set aside for it
    bits: list[NDArray] = field(default_factory=list)
    ranks: list[NDArray] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.held == len(self.ids) - 1

    def chunk(self, most: int) -> Chunk:
        """What to read next: the rest of the context, or of the tokens that predict new ones."""
        every = self.held >= self.window.context
        end = min(self.held + most, len(self.ids) - 1 if every else self.window.context)
        return Chunk(self.sequence, self.held, self.ids[self.held : end], every)

    def targets(self, chunk: Chunk) -> Sequence[int]:
        """The token that follows each of those whose logits are asked for. → (N,)"""
        end = chunk.start + len(chunk.ids)
        return self.ids[(chunk.start if chunk.every else end - 1) + 1 : end + 1]


class _Packer:
    """Gives each call to the decoder its chunks: the oldest windows first, then new ones."""

    def __init__(
        self,
        decoder: Decoder,
        texts: Sequence[Sequence[int]],
        plan: Iterable[Window],
        stem: int | None,
    ) -> None:
        self._decoder, self._texts, self._stem = decoder, texts, stem
        self._plan = iter(plan)
        self._coming = next(self._plan, None)
        self._room = decoder.free_pages  # that are not set aside for any window
        self._begun: deque[_Reading] = deque()  # in the order of the plan

    def waits(self) -> bool:
        """Whether there is more to read."""
        return bool(self._begun) or self._coming is not None

    def step(self, block: int) -> int:
        """Read the next `block` tokens. → the number of tokens that were measured"""
        batch = list(self._next_chunks(block))
        logits = self._decoder.read([chunk for _, chunk in batch])
        targets = [reading.targets(chunk) for reading, chunk in batch]
        bits, ranks = _surprisal(logits, np.concatenate(targets))
        ends = np.cumsum([len(each) for each in targets])[:-1]
        parts = zip(batch, np.split(bits, ends), np.split(ranks, ends), strict=True)
        for (reading, chunk), own_bits, own_ranks in parts:
            reading.held += len(chunk.ids)
            if chunk.every:
                reading.bits.append(own_bits)
                reading.ranks.append(own_ranks)
            if reading.is_done:
                self._release(reading)
        return sum(len(chunk.ids) for _, chunk in batch if chunk.every)

    def finished(self) -> Iterator[tuple[Window, NDArray, NDArray]]:
        """The windows that are done, up to the first that is not."""
        while self._begun and self._begun[0].is_done:
            reading = self._begun.popleft()
            yield reading.window, np.concatenate(reading.bits), np.concatenate(reading.ranks)

    def close(self) -> None:
        """Close the sequences of windows that are not done."""
        for reading in self._unfinished():
            self._release(reading)
        self._begun.clear()

    def _next_chunks(self, block: int) -> Iterator[tuple[_Reading, Chunk]]:
        for reading in self._unfinished():
            if not block:
                return
            chunk = reading.chunk(block)
            block -= len(chunk.ids)
            yield reading, chunk
        while block and (begun := self._begin()):
            chunk = begun.chunk(block)
            block -= len(chunk.ids)
            yield begun, chunk

    def _unfinished(self) -> list[_Reading]:
        return [reading for reading in self._begun if not reading.is_done]

    def _begin(self) -> _Reading | None:
        """Open the next window of the plan, if there is one and room for it."""
        if (window := self._coming) is None:
            return None
        held = 0 if self._stem is None else window.context
        pages = pages_for(window.end - 1 - window.begin) - held // PAGE
        fits = pages <= self._room
        if not fits and self._unfinished():
            return None
        if self._stem is None:
            sequence = self._decoder.open()
        else:  # alone, a window may write where the stem ends
            sequence = self._decoder.fork(self._stem) if fits else self._stem
        ids = list(self._texts[window.text][window.begin : window.end])
        reading = _Reading(window, ids, sequence, held, pages)
        self._room -= pages
        self._begun.append(reading)
        self._coming = next(self._plan, None)
        return reading

    def _release(self, reading: _Reading) -> None:
        if reading.sequence == self._stem:  # which keeps what was written
            self._room = self._decoder.free_pages
        else:
            self._decoder.close(reading.sequence)
            self._room += reading.pages


def _surprisal(logits: Any, targets: NDArray) -> tuple[NDArray, NDArray]:
    """`surprisal`, a few rows at a time. (N, V), (N,) → (N,), (N,)"""
    n = CACHE_TOKENS if isinstance(logits, np.ndarray) else GPU_CACHE_TOKENS
    parts = [surprisal(logits[i : i + n], targets[i : i + n]) for i in range(0, len(targets), n)]
    bits, ranks = zip(*parts, strict=True)
    return np.concatenate(bits), np.concatenate(ranks)


def surprisal(logits: Any, targets: NDArray) -> tuple[NDArray, NDArray]:
    """−log₂ softmax(logits) at each target, and its rank. (N, V), (N,) → (N,), (N,)

    Works on arrays of the array API standard; what it returns is NumPy's. Among equally
    probable tokens the rank is that of the first.
    """
    xp = array_namespace(logits)
    where = xp.asarray(targets, device=device(logits))
    own = xp.take_along_axis(logits, where[:, None], axis=-1)  # (N, 1)
    highest = xp.max(logits, axis=-1, keepdims=True)
    total = xp.sum(xp.exp(logits - highest), axis=-1, keepdims=True)
    nats = xp.log(total) + (highest - own)
    ranks = 1 + xp.sum(xp.astype(logits > own, xp.int32), axis=-1)
    return _numpy(nats[:, 0]) / math.log(2), _numpy(ranks)


def _numpy(x: Any) -> NDArray:
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)
