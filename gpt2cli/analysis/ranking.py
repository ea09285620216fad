"""How probable a model finds each of several continuations of one context."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2cli.analysis.packing import LOGITS_TOKENS, Window, measure
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation: its natural log-probability, and its length in tokens and bytes.

    `share` is its part of the probability of all that were given.
    """

    text: str
    log_probability: float
    share: float
    tokens: int
    size: int  # in bytes

    @property
    def per_token(self) -> float:
        """Log-probability per token."""
        return self.log_probability / self.tokens

    @property
    def per_byte(self) -> float:
        """Log-probability per byte, which does not favour rare words that are one token."""
        return self.log_probability / self.size


def encode(
    tokenizer: Tokenizer,
    context: str,
    choices: Sequence[str],
    context_length: int,
    *,
    special: bool = True,
    bos: bool = False,
) -> tuple[list[list[int]], int]:
    """The tokens of context and choice, per choice, and how many leading tokens all share.

    A choice may merge with the end of the context, so context and choice are encoded as one
    text, and a choice begins where the tokens common to the context and all rows end. Rows too
    long for the model lose their beginning. All begin with end-of-text if `bos`, or if nothing
    precedes the choices. Raises `UsageError` if a choice is empty or does not fit.
    """
    if "" in choices:
        raise UsageError("a choice must not be empty")
    rows = [tokenizer.encode(context + choice, special=special) for choice in choices]
    shared = _shared([tokenizer.encode(context, special=special), *rows])
    if (bos and not tokenizer.opening) or shared == 0:
        first = tokenizer.beginning()
        rows, shared = [[first, *row] for row in rows], shared + 1
    surplus = max(0, max(map(len, rows)) - context_length)
    if surplus >= shared:
        raise UsageError(f"a choice is longer than the model's context of {context_length} tokens")
    return [row[surplus:] for row in rows], shared - surplus


def _shared(rows: Sequence[Sequence[int]]) -> int:
    """The length of the beginning that all rows have in common."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def rank_choices(
    decoder: Decoder,
    rows: Sequence[Sequence[int]],
    shared: int,
    choices: Sequence[str],
    block: int = LOGITS_TOKENS,
) -> list[Choice]:
    """Each choice after the `shared` tokens, the most probable first.

    What they share is read once, `block` tokens at a time; the KV cache must hold the longest row.
    """
    plan = [Window(i, 0, shared, len(row)) for i, row in enumerate(rows)]
    stem, context = decoder.open(), rows[0][: shared - 1]
    try:
        for start in range(0, len(context), block):
            decoder.read([Chunk(stem, start, context[start : start + block])])
        read = list(measure(decoder, rows, plan, stem=stem, block=block))
    finally:
        decoder.close(stem)
    nats = [-float(bits.sum()) * math.log(2) for _, bits, _ in read]
    weights = [math.exp(n - max(nats)) for n in nats]
    found = [
        Choice(text, n, weight / sum(weights), len(bits), len(text.encode("utf-8")))
        for text, n, weight, (_, bits, _) in zip(choices, nats, weights, read, strict=True)
    ]
    return sorted(found, key=lambda choice: -choice.log_probability)
