"""GPT-2's forward pass in NumPy: what a CPU runs in fp32 without the native engine.

The same mathematics as `model`, which the tests hold it to. It exists for two reasons:
NumPy's BLAS reads a matrix for one vector at nearly the speed of memory, more than twice as
fast as PyTorch's on AMD; and a program that does not import torch starts seconds earlier.
The letters for shapes are those of `model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.protocol import Rows

FEW_ROWS = 4
# Queries that attention handles at once: bounds its memory to H · BLOCK · S scores per row.
BLOCK = 128
# Added to the scores within a block: no query attends to a later key.
_FUTURE = np.triu(np.full((BLOCK, BLOCK), -np.inf, dtype=np.float32), k=1)


class NumpyDecoder:
    """Decodes B rows at once over a KV cache of `capacity` tokens per row.

    `weights` are fp32 arrays under the names of `model.GPT2`; they may be memory-mapped.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray],
        batch_size: int = 1,
        capacity: int | None = None,
    ) -> None:
        self.config = config
        self.context_length = config.context_length
        self.length = 0
        self._weights = weights
        self._batch_size = batch_size
        capacity = min(capacity or config.context_length, config.context_length)
        shape = (config.n_layers, batch_size, config.n_heads, capacity, config.head_dim)
        self._keys = np.zeros(shape, dtype=np.float32)  # (L, B, H, S, D)
        self._values = np.zeros(shape, dtype=np.float32)

    def prefill(self, rows: Rows) -> NDArray:
        """Read B rows, or one for all, from an empty cache. → (B, V)"""
        self.length = 0
        ids = np.array(rows)
        logits = self._read(ids)
        if len(ids) < self._batch_size:  # one prompt for the whole batch is read once
            for cache in (self._keys, self._values):
                cache[:, 1:, :, : self.length] = cache[:, :1, :, : self.length].copy()
            logits = np.repeat(logits, self._batch_size, axis=0)
        return logits

    def step(self, ids: Sequence[int]) -> NDArray:
        """Read one more token per row. (B,) → (B, V)"""
        return self._read(np.array(ids)[:, None])

    def extend(self, rows: Rows) -> NDArray:
        """Read T more tokens of B rows, with logits after each. → (B, T, V)"""
        return self._read(np.array(rows), every=True)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with the caches of these B rows, in this order."""
        for cache in (self._keys, self._values):
            cache[:, :, :, : self.length] = cache[:, list(rows), :, : self.length]

    @np.errstate(invalid="ignore", over="ignore")  # damaged weights show in the logits
    def _read(self, ids: NDArray, *, every: bool = False) -> NDArray:
        """Logits after the last of T ids, or every one. (B, T) → (B, V) or (B, T, V)"""
        B, T = ids.shape
        w = self._weights
        positions = w["position_embedding.weight"][self.length : self.length + T]
        x = w["token_embedding.weight"][ids] + positions  # (B, T, C)
        x = x.reshape(B * T, -1)
        for i in range(self.config.n_layers):
            x += self._attention(i, self._norm(x, f"blocks.{i}.norm1"), B)
            x += self._feed_forward(i, self._norm(x, f"blocks.{i}.norm2"))
        self.length += T
        if not every:
            x = x[T - 1 :: T]  # (B, C)
        logits = _product(self._norm(x, "final_norm"), w["token_embedding.weight"].T)
        return logits.reshape(B, T, -1) if every else logits

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

    def _attention(self, layer: int, x: NDArray, B: int) -> NDArray:
        """softmax(q kᵀ / √D) v for T new tokens over S + T. (B · T, C) → (B · T, C)"""
        H, D, start = self.config.n_heads, self.config.head_dim, self.length
        qkv = self._linear(x, f"blocks.{layer}.attention.qkv").reshape(B, -1, 3, H, D)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        end = start + q.shape[2]
        self._keys[layer, :B, :, start:end] = k
        self._values[layer, :B, :, start:end] = v
        keys, values = self._keys[layer, :B, :, :end], self._values[layer, :B, :, :end]
        y = np.empty_like(q)
        for t in range(0, end - start, BLOCK):
            # A block of queries needs only the keys up to its last token: half the work in all.
            block = q[:, :, t : t + BLOCK] * np.float32(1 / math.sqrt(D))
            seen = start + t + block.shape[2]
            scores = block @ keys[:, :, :seen].swapaxes(-1, -2)  # (B, H, BLOCK, seen)
            scores[..., start + t :] += _FUTURE[: block.shape[2], : block.shape[2]]
            y[:, :, t : t + BLOCK] = _softmax(scores) @ values[:, :, :seen]
        y = y.swapaxes(1, 2).reshape(len(x), -1)
        return self._linear(y, f"blocks.{layer}.attention.out")

    def _feed_forward(self, layer: int, x: NDArray) -> NDArray:
        """(B · T, C) → (B · T, 4 C) → GELU → (B · T, C)"""
        up = self._linear(x, f"blocks.{layer}.feed_forward.up")
        return self._linear(_gelu(up), f"blocks.{layer}.feed_forward.down")


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
