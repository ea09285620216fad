"""GPT-2's forward pass in NumPy: what a CPU runs in fp32 without the native engine.

The same mathematics as `model`, which the tests hold it to. It exists for two reasons:
NumPy's BLAS reads a matrix for one vector at nearly the speed of memory, more than twice as
fast as PyTorch's on AMD; and a program that does not import torch starts seconds earlier.
The letters for shapes are those of `model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.paged import PagedDecoder
from gpt2cli.decoders.pages import PAGE, Chunk

FEW_ROWS = 4
# Queries that attention handles at once: bounds its memory to H · BLOCK · S scores.
BLOCK = 128
# Added to the scores within a block: no query attends to a later key.
_FUTURE = np.triu(np.full((BLOCK, BLOCK), -np.inf, dtype=np.float32), k=1)


class NumpyDecoder(PagedDecoder):
    """Decodes over a KV cache with room for `tokens` tokens.

    `weights` are fp32 arrays under the names of `model.GPT2`; they may be memory-mapped. `size`
    and `name` are those of `PagedDecoder`.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray],
        tokens: int | None = None,
        *,
        size: int | None = None,
        name: str = "the model",
    ) -> None:
        super().__init__(config, tokens, size, name)
        self._weights = weights
        shape = (config.n_layers, config.n_heads, self.pages, PAGE, config.head_dim)
        self._keys = np.zeros(shape, dtype=np.float32)
        self._values = np.zeros(shape, dtype=np.float32)

    def _copy_page(self, source: int, target: int) -> None:
        for cache in (self._keys, self._values):
            cache[:, :, target] = cache[:, :, source]

    @np.errstate(invalid="ignore", over="ignore")  # damaged weights show in the logits
    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> NDArray:
        """Rows of all chunks go through each layer together; attention is theirs alone."""
        w = self._weights
        ends = np.cumsum([len(chunk.ids) for chunk in chunks])
        places = [
            _Place(slice(end - len(chunk.ids), end), chunk.start, np.array(table))
            for chunk, table, end in zip(chunks, tables, ends, strict=True)
        ]
        positions = [np.arange(place.start, place.end) for place in places]
        x = w["token_embedding.weight"][[i for chunk in chunks for i in chunk.ids]]  # (N, C)
        x += w["position_embedding.weight"][np.concatenate(positions)]
        for i in range(self.config.n_layers):
            x += self._attention(i, self._norm(x, f"blocks.{i}.norm1"), places)
            x += self._feed_forward(i, self._norm(x, f"blocks.{i}.norm2"))
        wanted = [
            np.arange(len(x))[place.rows if chunk.every else slice(end - 1, end)]
            for chunk, place, end in zip(chunks, places, ends, strict=True)
        ]
        x = self._norm(x[np.concatenate(wanted)], "final_norm")
        return _product(x, w["token_embedding.weight"].T)

    def _norm(self, x: NDArray, name: str) -> NDArray:
        """Zero mean, unit variance, scale and shift. (…, C) → (…, C)"""
        centred: NDArray = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        centred /= np.sqrt(variance + self.config.layer_norm_eps)
        centred *= self._weights[name + ".scale"]
        centred += self._weights[name + ".shift"]
        return centred

    def _linear(self, x: NDArray, name: str) -> NDArray:
        """The product x W + b, with W as (in, out). (…, in) → (…, out)"""
        y = _product(x, self._weights[name + ".weight"])
        if (bias := self._weights.get(name + ".bias")) is not None:
            y += bias
        return y

    def _attention(self, layer: int, x: NDArray, places: Sequence[_Place]) -> NDArray:
        """softmax(q kᵀ / √D) v, each token over those of its sequence. (N, C) → (N, C)"""
        H, D = self.config.n_heads, self.config.head_dim
        qkv = self._linear(x, f"blocks.{layer}.attention.qkv").reshape(-1, 3, H, D)
        qkv = qkv.transpose(1, 2, 0, 3)  # (3, H, N, D)
        y = np.empty((len(x), H, D), dtype=np.float32)
        for place in places:
            q, k, v = qkv[:, :, place.rows]  # three of (H, T, D)
            keys = place.extend(self._keys[layer], k)
            values = place.extend(self._values[layer], v)
            y[place.rows] = _attend(q, keys, values, place.start).swapaxes(0, 1)
        return self._linear(y.reshape(len(x), -1), f"blocks.{layer}.attention.out")

    def _feed_forward(self, layer: int, x: NDArray) -> NDArray:
        """(N, C) → (N, 4 C) → GELU → (N, C)"""
        up = self._linear(x, f"blocks.{layer}.feed_forward.up")
        return self._linear(_gelu(up), f"blocks.{layer}.feed_forward.down")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one chunk is: its rows among all N, its first position, its sequence's pages."""

    rows: slice
    start: int
    pages: NDArray

    @property
    def end(self) -> int:
        """The position after the last of its tokens."""
        return self.start + self.rows.stop - self.rows.start  # type: ignore[no-any-return]

    def extend(self, cache: NDArray, new: NDArray) -> NDArray:
        """Write T new tokens and return all that the sequence holds.

        (H, pages, 32, D), (H, T, D) → (H, S, D)
        """
        H, D = len(cache), cache.shape[-1]
        positions = np.arange(self.start, self.end)
        cache[:, self.pages[positions // PAGE], positions % PAGE] = new
        first, count = int(self.pages[0]), -(-self.end // PAGE)
        together = np.array_equal(self.pages[:count], np.arange(first, first + count))
        held = cache[:, first : first + count] if together else cache[:, self.pages[:count]]
        return held.reshape(H, -1, D)[:, : self.end]


def _attend(q: NDArray, keys: NDArray, values: NDArray, start: int) -> NDArray:
    """Attention of T queries, the first at position `start`. (H, T, D), (H, S, D) → (H, T, D)"""
    y = np.empty_like(q)
    for t in range(0, q.shape[1], BLOCK):
        # A block of queries needs only the keys up to its last token: half the work in all.
        block = q[:, t : t + BLOCK] * np.float32(1 / math.sqrt(q.shape[-1]))
        seen = start + t + block.shape[1]
        scores = block @ keys[:, :seen].swapaxes(-1, -2)  # (H, BLOCK, seen)
        scores[..., start + t :] += _FUTURE[: block.shape[1], : block.shape[1]]
        y[:, t : t + BLOCK] = _softmax(scores) @ values[:, :seen]
    return y


def _product(x: NDArray, w: NDArray) -> NDArray:
    """The matrix product x W, row by row while rows are few. (R, in), (in, out) → (R, out)

    BLAS multiplies one row at the speed of memory. For a few rows it is no faster than row by
    row, and its threads stall on a machine that is busy with other work.
    """
    y: NDArray = np.stack([row @ w for row in x]) if len(x) <= FEW_ROWS else x @ w
    return y


def _softmax(x: NDArray) -> NDArray:
    """Over the last axis, in place."""
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def _gelu(x: NDArray) -> NDArray:
    """½ x (1 + tanh(√(2/π) (x + 0.044715 x³))), with one array of working memory."""
    y = np.square(x)
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y
