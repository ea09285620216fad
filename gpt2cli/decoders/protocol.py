"""What a decoder is: B rows of token ids in, logits out, and a cache of what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Rows = Sequence[Sequence[int]]


class Reader(Protocol):
    """What `generate` needs of a model with a KV cache: B rows of equal length.

    Logits are (B, V) arrays of the array API standard, for the token that comes next.
    """

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""

    @property
    def length(self) -> int:
        """The tokens that it holds now."""

    def prefill(self, rows: Rows) -> Any:
        """Forget everything, then read B rows of T ids, or one row meant for all."""

    def step(self, ids: Sequence[int]) -> Any:
        """Read one more id per row."""


class Decoder(Reader, Protocol):
    """A reader that can also extend, truncate and reorder its rows."""

    def extend(self, rows: Rows) -> Any:
        """Read T more ids of each of the first B rows, with logits after every one. → (B, T, V)"""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with the caches of these B rows, in this order; repeats and gaps are allowed."""
