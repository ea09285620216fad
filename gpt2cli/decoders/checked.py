"""A decoder whose logits are finite and cover just the vocabulary.

Damaged weights yield NaN or infinity, from which every choice and every score would be nonsense.
A model's vocabulary may be padded beyond the tokenizer's; those ids have no token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2cli.arrays import Array, are_numbers, array_namespace
from gpt2cli.decoders.protocol import Decoder, Rows
from gpt2cli.errors import not_numbers


class CheckedDecoder:
    """Another decoder's logits, cut to the first `size` ids. `name` is the model's.

    Its methods raise `WeightsError` where a logit is not finite. A step on a GPU is not
    checked, which would wait twice per token: there such a row is NaN throughout.
    """

    def __init__(self, decoder: Decoder, size: int, name: str = "the model") -> None:
        self._decoder, self._size, self._name = decoder, size, name

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""
        return self._decoder.context_length

    @property
    def length(self) -> int:
        """The tokens that it holds now."""
        return self._decoder.length

    def prefill(self, rows: Rows) -> Array:
        """Forget everything, then read B rows of T ids, or one row meant for all. → (B, V)"""
        return self._checked(self._decoder.prefill(rows)[:, : self._size])

    def step(self, ids: Sequence[int]) -> Array:
        """Read one more id per row. (B,) → (B, V)"""
        logits = self._decoder.step(ids)[:, : self._size]
        if isinstance(logits, np.ndarray):
            return self._checked(logits)
        # 0 times a sum is 0, unless an element is not finite.
        return logits + 0 * array_namespace(logits).sum(logits, axis=-1, keepdims=True)

    def extend(self, rows: Rows) -> Array:
        """Read T more ids of each of the first B rows. → (B, T, V)"""
        return self._checked(self._decoder.extend(rows)[:, :, : self._size])

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._decoder.truncate(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with the caches of these B rows, in this order."""
        self._decoder.reorder(rows)

    def _checked(self, logits: Array) -> Array:
        if not are_numbers(logits):
            raise not_numbers(self._name, self.length)
        return logits
