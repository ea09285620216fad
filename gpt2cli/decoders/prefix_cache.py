"""One text of a decoder, read only as far as it is not held yet."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2cli.arrays import Array
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.sampling.sampler import Draw


class PrefixCache:
    """A sequence of a decoder that becomes one text after another.

    It may be interrupted anywhere: what may not be in the KV cache is read again.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._sequence = decoder.open()
        self._held: list[int] = []

    @property
    def context_length(self) -> int:
        """The most tokens that it can hold."""
        return self._decoder.context_length

    @property
    def draw(self) -> Draw | None:
        """The decoder's."""
        return self._decoder.draw

    def read(self, ids: Sequence[int], *, every: int = 1) -> Array:
        """Hold these ids: keep the common prefix and read the rest. → (`every`, V)

        The logits are those after each of the last `every` ids.
        """
        # The last ones are always read, for the logits after them.
        keep = min(_common(self._held, ids), len(ids) - every)
        del self._held[keep:]
        # All logits of a long prompt would take much memory, for the few at the end.
        if every > 1 and keep < len(ids) - every:
            self._read(ids[keep : len(ids) - every])
            keep = len(ids) - every
        return self._read(ids[keep:], every > 1)

    def close(self) -> None:
        """Leave its place in the decoder to others."""
        self._decoder.close(self._sequence)

    def _read(self, ids: Sequence[int], every: bool = False) -> Array:
        logits = self._decoder.read([Chunk(self._sequence, len(self._held), ids, every)])
        self._held += ids
        return logits


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    if a == b[: len(a)]:
        return len(a)
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))
