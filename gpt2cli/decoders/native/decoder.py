"""The `Decoder` protocol on top of `engine.cpp`; the letters for shapes are those of `model`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native import abi, quantize
from gpt2cli.decoders.protocol import Rows
from gpt2cli.errors import DeviceError

_ERRORS = {
    1: "a token id is outside the vocabulary",
    2: "the tokens or rows do not fit the KV cache",
    3: "a decoder cannot be used in a forked process; make a new one there",
}


class EngineDecoder:
    """Decodes B rows at once over a KV cache of `capacity` tokens per row.

    `weights` are fp32 arrays under the names of `model.GPT2`, used where they are: they may
    be memory-mapped. With `precision` int8 or int4 the matrices have 8 or 4 bits per weight, in
    groups of 32 that share a scale; the inputs of each layer have 8 bits, grouped in the same way,
    and so has the KV cache, with a scale per token and head. `codes` are those matrices if
    `quantize` has made them already. `threads` defaults to OMP_NUM_THREADS or all cores. `level`
    limits the engine to one of `native.LEVELS`, for tests. Raises `DeviceError` if the engine is
    not available, or memory is not.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray],
        batch_size: int = 1,
        capacity: int | None = None,
        *,
        precision: str = "fp32",
        codes: Mapping[str, NDArray] | None = None,
        threads: int | None = None,
        level: str = native.LEVELS[-1],
    ) -> None:
        self._library = native.library()
        if precision != "fp32" and codes is None:
            codes = quantize.encode(config, weights, precision)
        self.config = config
        self.context_length = config.context_length
        self.length = 0
        self._batch_size = batch_size
        self._capacity = min(capacity or config.context_length, config.context_length)
        number = np.dtype(np.float32 if precision == "fp32" else np.int8)
        panel = self._library.engine_panel_length()
        # The engine has the addresses of the cache and the weights, which are kept alive here.
        self._cache = _Cache(config, batch_size, self._capacity, panel, number)
        self._weights = _in_order(config, weights, codes or {})
        addresses = np.array([0 if w is None else w.ctypes.data for w in self._weights], np.uintp)
        self._engine = self._library.engine_new(
            _sizes(config),
            self._cache.addresses(),
            addresses.ctypes.data,
            native.BITS[precision],
            threads or native.thread_count(),
            native.LEVELS.index(level),
        )
        if not self._engine:
            raise DeviceError("there is not enough memory for the native engine")
        weakref.finalize(self, self._library.engine_free, self._engine)

    def prefill(self, rows: Rows) -> NDArray:
        """Read B rows, or one for all, from an empty cache. → (B, V)"""
        self.length = 0
        logits = self._read(np.array(rows, dtype=np.int32))
        if len(logits) < self._batch_size:  # one prompt for the whole batch is read once
            for part in self._cache.held(self.length):
                part[:, 1:] = part[:, :1].copy()  # else NumPy copies all, lest they overlap
            logits = np.repeat(logits, self._batch_size, axis=0)
        return logits

    def step(self, ids: Sequence[int]) -> NDArray:
        """Read one more token per row. (B,) → (B, V)"""
        return self._read(np.array(ids, dtype=np.int32)[:, None])

    def extend(self, rows: Rows) -> NDArray:
        """Read T more tokens of B rows, with logits after each. → (B, T, V)"""
        return self._read(np.array(rows, dtype=np.int32), every=True)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with the tokens of these B rows, in this order."""
        for part in self._cache.held(self.length):
            part[...] = part[:, list(rows)]

    def _read(self, ids: NDArray, *, every: bool = False) -> NDArray:
        """Logits after the last of T ids, or every one. (B, T) → (B, V) or (B, T, V)"""
        B, T = ids.shape
        if self.length + T > self._capacity:
            raise ValueError(f"{self.length + T} tokens do not fit the KV cache")
        shape = (B, T) if every else (B,)
        logits = np.empty((*shape, self.config.vocab_size), dtype=np.float32)
        job = abi.Job(ids.ctypes.data, B, T, self.length, every, logits.ctypes.data)
        code = self._library.engine_read(self._engine, job)
        if code:
            raise ValueError(_ERRORS[code])
        self.length += T
        return logits


class _Cache:
    """Keys and values of `rows` sequences, for `capacity` tokens in whole panels."""

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, panel: int, number: np.dtype[Any]
    ) -> None:
        self._panel = panel
        panels = -(-capacity // panel)
        heads = (config.n_layers, rows, config.n_heads)
        self._keys = np.zeros((*heads, panels, panel * config.head_dim), dtype=number)
        self._values = np.zeros_like(self._keys)
        self._key_scales = np.zeros((*heads, panels * panel), dtype=np.float32)
        self._value_scales = np.zeros_like(self._key_scales)

    def held(self, length: int) -> list[NDArray]:
        """The parts that hold the first `length` tokens: views (L, B, H, …)."""
        panels = -(-length // self._panel)
        return [
            self._keys[:, :, :, :panels],
            self._values[:, :, :, :panels],
            self._key_scales[..., :length],
            self._value_scales[..., :length],
        ]

    def addresses(self) -> abi.KVCache:
        """The same for the engine."""
        return abi.KVCache(
            rows=self._key_scales.shape[1],
            capacity=self._key_scales.shape[-1],
            keys=self._keys.ctypes.data,
            values=self._values.ctypes.data,
            key_scales=self._key_scales.ctypes.data,
            value_scales=self._value_scales.ctypes.data,
        )


def _sizes(config: ModelConfig) -> abi.Config:
    return abi.Config(
        V=config.vocab_size,
        context=config.context_length,
        C=config.emb_dim,
        H=config.n_heads,
        L=config.n_layers,
        eps=config.layer_norm_eps,
    )


def _in_order(
    config: ModelConfig, weights: Mapping[str, NDArray], codes: Mapping[str, NDArray]
) -> list[NDArray | None]:
    """All weights as `engine_new` expects them; None for what there is not."""

    def floats(name: str) -> NDArray | None:
        return np.ascontiguousarray(weights[name], dtype=np.float32) if name in weights else None

    ordered = [floats("token_embedding.weight"), floats("position_embedding.weight")]
    ordered += [codes.get(quantize.HEAD), None]
    ordered += [floats("final_norm.scale"), floats("final_norm.shift")]
    for i in range(config.n_layers):
        for norm, *matrices in (
            ("norm1", "attention.qkv", "attention.out"),
            ("norm2", "feed_forward.up", "feed_forward.down"),
        ):
            ordered += [floats(f"blocks.{i}.{norm}.scale"), floats(f"blocks.{i}.{norm}.shift")]
            for name in (f"blocks.{i}.{m}" for m in matrices):
                weight = codes[f"{name}.weight"] if codes else floats(f"{name}.weight")
                ordered += [weight, floats(f"{name}.bias")]
    return ordered
