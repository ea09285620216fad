"""A decoder that reads only what it does not hold yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt2cli.decoders.protocol import Decoder, Rows

BLOCK = 64  # ids read at once: bounds the logits, of which only the last are used


class PrefixCache:
    """A `Decoder` of one row whose prefill reads only what the decoder does not hold yet.

    It may be interrupted anywhere: what may not be in the KV cache is read again.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._held: list[int] = []  # what has been read; the decoder may be further

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""
        return self._decoder.context_length

    @property
    def length(self) -> int:
        """The tokens that it holds now."""
        return len(self._held)

    def prefill(self, rows: Rows) -> Any:
        """Hold one row of T ids: keep the common prefix and read the rest. → (1, V)"""
        (ids,) = rows
        # The last one is always read, for the logits after it.
        self.truncate(min(_common(self._held, ids), len(ids) - 1))
        return self._read(ids[self.length :])

    def step(self, ids: Sequence[int]) -> Any:
        """Read one more id. → (1, V)"""
        logits = self._decoder.step(ids)
        self._held += ids
        return logits

    def extend(self, rows: Rows) -> Any:
        """Read T more ids of the one row, with logits after each. → (1, T, V)"""
        (ids,) = rows
        logits = self._decoder.extend([list(ids)])
        self._held += ids
        return logits

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self._held[length:]
        self._decoder.truncate(length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Change nothing: there is one row."""

    def _read(self, ids: Sequence[int]) -> Any:
        """Read T more ids. (T,) → (1, V), the logits after the last"""
        if not self._held:
            logits = self._decoder.prefill([list(ids)])
            self._held += ids
            return logits
        if len(ids) == 1:
            return self.step(ids)
        for begin in range(0, len(ids), BLOCK):
            logits = self.extend([ids[begin : begin + BLOCK]])[:, -1]
        return logits


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
