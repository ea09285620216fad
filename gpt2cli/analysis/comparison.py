"""Two models on one text: how surprised each is, and how far apart their predictions are.

Everything in bits. Models are compared token by token, so they must share a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import to_device

from gpt2cli.arrays import NDArray
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer

BLOCK = 64  # tokens read at once


def check_same_vocabulary(names: Sequence[str], tokenizers: Sequence[Tokenizer]) -> None:
    """Raise `UsageError` if two models' tokens are not the same."""
    if tokenizers[0] != tokenizers[1]:
        sizes = [f"{name} has {t.size:,}" for name, t in zip(names, tokenizers, strict=True)]
        raise UsageError(
            f"the vocabularies differ ({' tokens, '.join(sizes)}), so there are no "
            "tokens to compare one by one"
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Two predictions of the token at one place, given all before it.

    `token` is the one that came, and `surprisals` are A's and B's −log₂ p of it; both are
    None after the last. `kl` is KL(A ‖ B) = Σ p_A log₂(p_A / p_B), the extra bits
    per token of a code made for B's probabilities. `choices` are the most probable tokens
    of A and B, `ranks` the rank of A's choice with B and of B's with A, from 1.
    """

    token: int | None
    surprisals: tuple[float, float] | None
    kl: float
    choices: tuple[int, int]
    ranks: tuple[int, int]


def compare(
    a: Decoder, b: Decoder, ids: Sequence[int], advance: Advance = lambda _: None
) -> Iterator[Difference]:
    """Read `ids` with both, and yield T differences: of tokens 1 to T − 1 and the next one."""
    coming = [*ids[1:], None]
    for token, *logits in zip(coming, _logits(a, ids), _logits(b, ids), strict=True):
        p, q = (_log2_softmax(row) for row in logits)
        best_p, best_q = int(p.argmax()), int(q.argmax())
        yield Difference(
            token=token,
            surprisals=None if token is None else (float(-p[token]), float(-q[token])),
            # Rounding may leave it a little below 0, which no divergence is.
            kl=max(0.0, float(np.exp2(p) @ (p - q))),
            choices=(best_p, best_q),
            ranks=(_rank(q, best_p), _rank(p, best_q)),
        )
        advance(1)


def _logits(decoder: Decoder, ids: Sequence[int]) -> Iterator[NDArray]:
    """Logits (V,) after each token, computed in blocks: all at once may be gigabytes."""
    sequence = decoder.open()
    try:
        for start in range(0, len(ids), BLOCK):
            chunk = Chunk(sequence, start, ids[start : start + BLOCK], every=True)
            yield from np.asarray(to_device(decoder.read([chunk]), "cpu"), dtype=np.float64)
    finally:
        decoder.close(sequence)


def _log2_softmax(logits: NDArray) -> NDArray:
    shifted = logits - logits.max()
    log_p: NDArray = (shifted - np.log(np.exp(shifted).sum())) / math.log(2)
    return log_p


def _rank(log_p: NDArray, token: int) -> int:
    return 1 + int((log_p > log_p[token]).sum())


@dataclass(frozen=True, slots=True)
class Summary:
    """Over a text: means in bits; `surprisals` is None where no token was predicted."""

    surprisals: tuple[float, float] | None
    mean_kl: float
    agreement: float  # share of places where both models choose the same token
    places: int


def summarise(differences: Sequence[Difference]) -> Summary:
    """The means over all places. Raises `ValueError` if there are none."""
    if not differences:
        raise ValueError("nothing was compared")
    surprisals = [d.surprisals for d in differences if d.surprisals is not None]
    count = len(differences)
    return Summary(
        surprisals=(
            math.fsum(a for a, _ in surprisals) / len(surprisals),
            math.fsum(b for _, b in surprisals) / len(surprisals),
        )
        if surprisals
        else None,
        mean_kl=math.fsum(d.kl for d in differences) / count,
        agreement=sum(d.choices[0] == d.choices[1] for d in differences) / count,
        places=count,
    )
