"""What a decoder is: chunks of sequences in, logits out, and a cache of what each has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gpt2cli.arrays import Array
from gpt2cli.decoders.pages import Chunk
from gpt2cli.sampling.sampler import Draw


class Decoder(Protocol):
    """A model with a KV cache of many sequences, each with tokens of its own.

    What to read and where is the caller's to say, chunk by chunk: a prompt starts at 0, a token
    that was chosen is a chunk of one id, going back is a smaller start.
    """

    @property
    def context_length(self) -> int:
        """The most tokens that a sequence can hold."""

    @property
    def free_pages(self) -> int:
        """The pages of the KV cache that can still be taken, each for `pages.PAGE` tokens."""

    @property
    def pages(self) -> int:
        """All pages of the KV cache."""

    @property
    def draw(self) -> Draw | None:
        """What draws from its logits faster than the rules of `sampling`, if anything does."""

    def open(self) -> int:
        """A new, empty sequence."""

    def fork(self, sequence: int) -> int:
        """A new sequence that holds the same tokens, without another copy of them."""

    def close(self, sequence: int) -> None:
        """Forget a sequence."""

    def share(self, sequence: int, ids: Sequence[int]) -> int:
        """Hold what other sequences have read of `ids`, as far as it is known. → the tokens held

        The sequence must hold the first of `ids`, or nothing; the last is always left to read.
        """

    def read(self, chunks: Sequence[Chunk]) -> Array:
        """Read a chunk of each of several sequences. → (N, V), chunk after chunk

        N counts one row per chunk, after its last id, and one per id where `every` is set. V are
        the tokenizer's ids. Raises `OutOfPages`, having changed nothing, if the cache is too
        small, and `WeightsError` if a logit is not finite.
        """
