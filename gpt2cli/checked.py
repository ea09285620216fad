"""A decoder whose logits are those of the vocabulary, and numbers.

Damaged weights yield NaN or infinity, from which every choice and every score would be nonsense.
A model's vocabulary may be padded beyond the tokenizer's; those ids stand for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt2cli.arrays import Array, array_namespace
from gpt2cli.errors import WeightsError
from gpt2cli.generation import Decoder, Rows


def not_numbers(name: str, tokens: int) -> WeightsError:
    """What to raise where the logits of so many tokens, read at once or not, are no numbers."""
    return WeightsError(
        f"the weights of {name} give no numbers (NaN or infinity instead) within the first "
        f"{tokens} tokens; they are damaged: fetch or train the model again"
    )


def are_numbers(logits: Array) -> Any:
    """Whether all are finite, as one value where the array is."""
    xp = array_namespace(logits)
    return xp.all(xp.isfinite(logits))


class CheckedDecoder:
    """Another decoder's logits, cut to the first `size` ids. `name` is the model's.

    Its methods raise `WeightsError` where a logit is not finite. On a GPU that is known of a
    step only when the next one begins, since to ask at once would be to wait twice per token.
    """

    def __init__(self, decoder: Decoder, size: int, name: str = "the model") -> None:
        self._decoder, self._size, self._name = decoder, size, name
        self._unknown: tuple[Any, int] | None = None  # whether a step's logits are numbers

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
        if self._unknown is not None:
            self._demand(*self._unknown)
        logits = self._decoder.step(ids)[:, : self._size]
        if isinstance(logits, np.ndarray):
            return self._checked(logits)
        self._unknown = are_numbers(logits), self.length
        return logits

    def extend(self, rows: Rows) -> Array:
        """Read T more ids of each of the first B rows. → (B, T, V)"""
        return self._checked(self._decoder.extend(rows)[:, :, : self._size])

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._decoder.truncate(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with what these B rows remember, in this order."""
        self._decoder.reorder(rows)

    def _checked(self, logits: Array) -> Array:
        self._unknown = None
        self._demand(are_numbers(logits), self.length)
        return logits

    def _demand(self, numbers: Any, tokens: int) -> None:
        if not bool(numbers):
            raise not_numbers(self._name, tokens)
