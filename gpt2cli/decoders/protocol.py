"""What a decoder is: B rows of token ids in, logits out, and a memory of what was read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Rows = Sequence[Sequence[int]]


class Reader(Protocol):
    """What `generate` asks of a model that remembers what it has read: B rows of equal length.

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
        """Read one more id a row."""


class Decoder(Reader, Protocol):
    """The same with all that a decoder can do."""

    def extend(self, rows: Rows) -> Any:
        """Read T more ids of each of the first B rows, with logits after every one. → (B, T, V)"""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with what these B rows remember, in this order; some twice, some not at all."""
