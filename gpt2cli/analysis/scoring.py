"""How probable a model finds a text: surprisal of each token, perplexity, bits per byte.

The surprisal of a token is −log₂ p(token | what precedes it), in bits; perplexity is 2 to its
mean (Jelinek et al. 1977, doi:10.1121/1.2016299). The first token of a text has nothing before
it and is not counted, as in transformers' loss, unless the text begins with end-of-text.

A text longer than the context is read in windows, each `stride` tokens after the one before and
counting only tokens that are new (huggingface.co/docs/transformers/perplexity).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter

import numpy as np

from gpt2cli.analysis.packing import GPU_LOGITS_TOKENS, LOGITS_TOKENS, Window, measure
from gpt2cli.arrays import NDArray
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer


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
    block: int = LOGITS_TOKENS,
    advance: Advance = lambda _: None,
) -> Iterator[tuple[int, Score]]:
    """Score texts, given as token ids, in order: yields a text's index and its next stretch.

    They are read side by side, as `measure` does it. Memory does not grow with their lengths.
    """
    context_length = decoder.context_length
    plans = (windows(len(ids), context_length, stride, i) for i, ids in enumerate(texts))
    plan = chain.from_iterable(plans)
    following = 0  # the text after the one of the last window
    for w, bits, ranks in measure(decoder, texts, plan, block=block, advance=advance):
        yield from _unscored(texts, range(following, w.text))
        yield w.text, _stretch(tokenizer, texts[w.text], w, bits, ranks)
        following = w.text + 1
    yield from _unscored(texts, range(following, len(texts)))


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


def _unscored(
    texts: Sequence[Sequence[int]], indices: Iterable[int]
) -> Iterator[tuple[int, Score]]:
    """Texts of no token, or of one with nothing before it."""
    for i in indices:
        n = len(texts[i])
        yield i, Score(texts[i], np.full(n, np.nan), np.zeros(n, dtype=np.int32), 0)
