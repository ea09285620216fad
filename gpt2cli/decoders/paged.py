"""What all decoders share: sequences and their pages, and logits that can be trusted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from gpt2cli.arrays import Array, are_numbers, array_namespace
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.pages import Chunk, Pages, pages_for
from gpt2cli.errors import not_numbers
from gpt2cli.sampling.sampler import Draw


class PagedDecoder(ABC):
    """A `Decoder` but for its arithmetic, with room for `tokens` tokens of all sequences.

    Without `tokens` there is room for one full context. Logits are cut to the first `size` ids,
    where a model's vocabulary is padded; `name` is the model's, for errors.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens: int | None = None,
        size: int | None = None,
        name: str = "the model",
    ) -> None:
        self.config = config
        self.pages = pages_for(tokens or config.context_length)
        self._size, self._name = size or config.vocab_size, name
        # Beginnings that nobody holds stay for others, in at most a quarter of the memory.
        self._pages = Pages(self.pages, kept=self.pages // 4)

    @property
    def context_length(self) -> int:
        """The most tokens that a sequence can hold."""
        return self.config.context_length

    @property
    def free_pages(self) -> int:
        """The pages of the KV cache that can still be taken."""
        return self._pages.free

    @property
    def draw(self) -> Draw | None:
        """What draws from its logits faster than the rules of `sampling`, if anything does."""
        return None

    def open(self) -> int:
        """A new, empty sequence."""
        return self._pages.open()

    def fork(self, sequence: int) -> int:
        """A new sequence that holds the same tokens, without another copy of them."""
        return self._pages.fork(sequence)

    def close(self, sequence: int) -> None:
        """Forget a sequence."""
        self._pages.close(sequence)

    def share(self, sequence: int, ids: Sequence[int]) -> int:
        """Hold what other sequences have read of `ids`, as far as it is known. → tokens held"""
        return self._pages.share(sequence, ids)

    def read(self, chunks: Sequence[Chunk]) -> Array:
        """Read a chunk of each of several sequences. → (N, V), chunk after chunk

        Raises `OutOfPages` if the cache is too small, `ValueError` past the context, and
        `WeightsError` if a logit is not finite. Only a GPU's last logits are not checked, which
        would wait twice per token: there such a row is NaN throughout.
        """
        longest = max(chunk.start + len(chunk.ids) for chunk in chunks)
        if longest > self.context_length:
            raise ValueError(f"{longest} tokens exceed a context of {self.context_length}")
        for source, target in self._pages.prepare(chunks):
            self._copy_page(source, target)
        tables = [self._pages.table(chunk.sequence) for chunk in chunks]
        logits = self._compute(chunks, tables)[:, : self._size]
        self._pages.commit(chunks)
        if isinstance(logits, np.ndarray) or any(chunk.every for chunk in chunks):
            if not are_numbers(logits):
                raise not_numbers(self._name, longest)
            return logits
        # 0 times a sum is 0, unless an element is not finite.
        return logits + 0 * array_namespace(logits).sum(logits, axis=-1, keepdims=True)

    @abstractmethod
    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Array:
        """Write keys and values of all chunks; their logits. → (N, V)

        `tables` are the pages of each chunk's sequence, at least as many as it needs.
        """

    @abstractmethod
    def _copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of one page to another."""
