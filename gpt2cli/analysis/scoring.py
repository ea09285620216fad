"""How probable a model finds a text: surprisal of each token, perplexity, bits per byte.

The surprisal of a token is −log₂ p(token | what precedes it), in bits; perplexity is 2 to its
mean (Jelinek et al. 1977, doi:10.1121/1.2016299). The first token of a text has nothing before
it and is not counted, as in transformers' loss, unless the text begins with end-of-text.

A text longer than the context is read in windows, each `stride` tokens after the one before and
counting only tokens that are new (huggingface.co/docs/transformers/perplexity).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
from array_api_compat import device

from gpt2cli.arrays import NDArray, array_namespace
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer

# Tokens whose logits are held at once (51 MB with OpenAI's vocabulary; 823 MB on a GPU), and of
# these the tokens whose surprisal is computed at once, so that a CPU's cache holds their logits.
LOGITS_TOKENS, CACHE_TOKENS = 256, 8
GPU_LOGITS_TOKENS, GPU_CACHE_TOKENS = 4096, 1024
GROUP = 64  # texts begun together, so that those of similar length share a batch


@dataclass(frozen=True, slots=True)
class Summary:
    """How surprising some tokens were: their number, their UTF-8 bytes, their bits in all.

    The means are None where there are no tokens.
    """

    tokens: int
    size: int
    bits: float

    def __add__(self, other: Summary) -> Summary:
        return Summary(self.tokens + other.tokens, self.size + other.size, self.bits + other.bits)

    @property
    def bits_per_token(self) -> float | None:
        """The mean surprisal."""
        return self.bits / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """2 to the mean surprisal: the number of equally probable tokens it corresponds to."""
        mean = self.bits_per_token
        return None if mean is None else 2.0 ** min(mean, 1000.0)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable between models with different vocabularies."""
        return self.bits / self.size if self.size else None


@dataclass(frozen=True, slots=True)
class Score:
    """Tokens of a text, all or a stretch of them, and how surprising each was.

    `bits` are −log₂ p, NaN for a text's first token; `ranks` the place of a token among all by
    probability, from 1, and 0 for the first. `size` counts the UTF-8 bytes of those scored.
    """

    ids: Sequence[int]
    bits: NDArray  # (N,)
    ranks: NDArray  # (N,)
    size: int

    @property
    def summary(self) -> Summary:
        """The sum over all tokens but a text's first."""
        bits = float(np.nansum(self.bits, dtype=np.float64))
        return Summary(int(np.count_nonzero(self.ranks)), self.size, bits)


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens `first` to `end` of a text, to be predicted from those that begin at `begin`."""

    text: int
    begin: int
    first: int
    end: int


def default_stride(context_length: int) -> int:
    """Half the context, so that every token but the first ones sees at least as much."""
    return max(1, context_length // 2)


def check_stride(stride: int, context_length: int) -> None:
    """Raise `UsageError` for a stride that makes no progress or leaves tokens out."""
    if not 1 <= stride < max(2, context_length):
        raise UsageError(
            f"stride must be from 1 to {context_length - 1}, one less than the context, "
            f"not {stride}",
            "stride",
        )


def windows(length: int, context_length: int, stride: int, text: int = 0) -> Iterator[Window]:
    """Cover the tokens 1 to `length` of a text once each."""
    begin, first = 0, 1
    while first < length:
        end = min(begin + context_length, length)
        yield Window(text, begin, first, end)
        begin, first = begin + stride, end


def block_size(device: str) -> int:
    """Tokens whose logits to hold at once on such a device."""
    return GPU_LOGITS_TOKENS if device.startswith("cuda") else LOGITS_TOKENS


def score_texts(
    decoder: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[Sequence[int]],
    *,
    stride: int,
    batch_size: int = 1,
    block: int = LOGITS_TOKENS,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[int, Score]]:
    """Score texts, given as token ids, in order: yields a text's index and its next stretch.

    `batch_size` windows, the rows of the decoder, are read side by side. Memory does not grow
    with the length of a text.
    """
    read = partial(measure, decoder, texts, batch_size=batch_size, block=block, advance=advance)

    def measured(plan: Iterable[Window]) -> Iterator[tuple[int, Score]]:
        for w, bits, ranks in read(plan):
            yield w.text, _stretch(tokenizer, texts[w.text], w, bits, ranks)

    for begin in range(0, len(texts), GROUP):
        group = range(begin, min(begin + GROUP, len(texts)))
        plans = {i: windows(len(texts[i]), decoder.context_length, stride, i) for i in group}
        # First windows of different texts are batched by length; the later windows of one text
        # all have a context of the same length.
        firsts = [window for plan in plans.values() for window in islice(plan, 1)]
        firsts.sort(key=lambda window: window.end)
        begun = dict(measured(firsts))
        for i, plan in plans.items():
            yield i, begun[i] if i in begun else _unscored(texts[i])
            yield from measured(plan)


def join(found: Iterable[tuple[int, Score]]) -> Iterator[Score]:
    """The score of each whole text, from its stretches."""
    for _, parts in groupby(found, key=itemgetter(0)):
        scores = [score for _, score in parts]
        yield Score(
            list(chain.from_iterable(score.ids for score in scores)),
            np.concatenate([score.bits for score in scores]),
            np.concatenate([score.ranks for score in scores]),
            sum(score.size for score in scores),
        )


def _stretch(
    tokenizer: Tokenizer, ids: Sequence[int], window: Window, bits: NDArray, ranks: NDArray
) -> Score:
    """The score of a window's new tokens, after the text's first token if it is the first."""
    new = ids[window.first : window.end]
    size = len(tokenizer.decode_bytes(new))
    bits, ranks = bits.astype(np.float32), ranks.astype(np.int32)
    if window.first > 1:
        return Score(new, bits, ranks, size)
    return Score(ids[: window.end], np.insert(bits, 0, np.nan), np.insert(ranks, 0, 0), size)


def _unscored(ids: Sequence[int]) -> Score:
    """No token, or one with nothing before it."""
    return Score(ids, np.full(len(ids), np.nan), np.zeros(len(ids), dtype=np.int32), 0)


def measure(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    plan: Iterable[Window],
    *,
    batch_size: int,
    block: int = LOGITS_TOKENS,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[Window, NDArray, NDArray]]:
    """Bits and ranks of each window's tokens, (N,) both.

    The same number of tokens must precede them in every window. `batch_size` is the decoder's.
    """
    rest = iter(plan)
    while batch := list(islice(rest, batch_size)):
        _prefill(decoder, [texts[w.text][w.begin : w.first - 1] for w in batch], batch_size)
        bits, ranks = _extend(decoder, texts, batch, block, advance)
        for i, w in enumerate(batch):
            yield w, bits[i, : w.end - w.first], ranks[i, : w.end - w.first]


def _prefill(decoder: Decoder, contexts: Sequence[Sequence[int]], batch_size: int) -> None:
    """Read what precedes the new tokens, once if it is the same in all windows."""
    rows = [list(context) for context in contexts]
    if not rows[0]:
        decoder.truncate(0)
    elif all(row == rows[0] for row in rows):
        decoder.prefill(rows[:1])
    else:
        decoder.prefill(rows + rows[:1] * (batch_size - len(rows)))


def _extend(
    decoder: Decoder,
    texts: Sequence[Sequence[int]],
    batch: Sequence[Window],
    block: int,
    advance: Advance,
) -> tuple[NDArray, NDArray]:
    """Bits and ranks, (B, T) both; entries past the end of a window are arbitrary."""
    lengths = np.array([w.end - w.first for w in batch])
    B, T = len(batch), int(lengths.max())
    ids = np.zeros((B, T + 1), dtype=np.int64)  # padded with zeros, which no token attends to
    for row, w in zip(ids, batch, strict=True):
        row[: w.end - w.first + 1] = texts[w.text][w.first - 1 : w.end]
    bits, ranks = np.empty((B, T)), np.empty((B, T), dtype=np.int64)
    step = max(1, block // B)
    for t in range(0, T, step):
        inputs, targets = ids[:, t : min(t + step, T)], ids[:, t + 1 : t + step + 1]
        logits = decoder.extend(inputs.tolist())
        bits[:, t : t + step], ranks[:, t : t + step] = _surprisal(logits, targets)
        advance(int((lengths - t).clip(0, step).sum()))
    return bits, ranks


def _surprisal(logits: Any, targets: NDArray) -> tuple[NDArray, NDArray]:
    """Bits and rank of each target. (B, T, V), (B, T) → (B, T), (B, T)"""
    rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    n = CACHE_TOKENS if isinstance(logits, np.ndarray) else GPU_CACHE_TOKENS
    parts = [surprisal(rows[i : i + n], flat[i : i + n]) for i in range(0, rows.shape[0], n)]
    bits, ranks = zip(*parts, strict=True)
    return np.concatenate(bits).reshape(targets.shape), np.concatenate(ranks).reshape(targets.shape)


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
