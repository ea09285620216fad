"""The `Decoder` protocol on top of `engine.cpp`; the letters for shapes are those of `model`."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native import quantize
from gpt2cli.decoders.protocol import Rows
from gpt2cli.errors import DeviceError

_ERRORS = {
    1: "a token id is outside the vocabulary",
    2: "the tokens or rows do not fit the KV cache",
    3: "a decoder cannot be used in a forked process; make a new one there",
}
PANEL = 32  # tokens whose keys lie together, or a multiple of those, at every level


class EngineDecoder:
    """Decodes B rows at once over a KV cache of `capacity` tokens a row.

    `weights` are fp32 arrays under the names of `model.GPT2`, used where they are: they may
    be memory-mapped. With `precision` int8 or int4 the matrices are in so many bits, in groups
    of 32 with a scale of their own, as are the inputs of each layer in 8 bits; the KV cache is
    in 8 with a scale for each token and head. `codes` are those matrices where `quantize` has
    made them already. `threads` defaults to OMP_NUM_THREADS or all cores. `level` holds the
    engine to one of `native.LEVELS`, for tests. Raises `DeviceError` where the engine is not
    available, or memory is not.
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
        library = native.library()
        if precision != "fp32" and codes is None:
            codes = quantize.encode(config, weights, precision)
        self.config = config
        self.context_length = config.context_length
        self.length = 0
        self._library = library
        self._batch_size = batch_size
        self._capacity = min(capacity or config.context_length, config.context_length)
        self._cells = -(-self._capacity // PANEL) * PANEL
        number = np.float32 if precision == "fp32" else np.int8
        heads = (config.n_layers, batch_size, config.n_heads)
        panels = (*heads, self._cells // PANEL, PANEL * config.head_dim)
        self._keys = np.zeros(panels, dtype=number)
        self._values = np.zeros(panels, dtype=number)
        self._key_scales = np.zeros((*heads, self._cells), dtype=np.float32)
        self._value_scales = np.zeros((*heads, self._cells), dtype=np.float32)
        self._weights = _in_order(
            config, weights, codes or {}
        )  # kept alive: the engine has their addresses
        sizes = np.array(
            [
                config.vocab_size,
                config.context_length,
                config.emb_dim,
                config.n_heads,
                config.n_layers,
            ],
            dtype=np.int32,
        )
        addresses = np.array([0 if w is None else w.ctypes.data for w in self._weights], np.uintp)
        self._engine = library.engine_new(
            sizes.ctypes.data,
            config.layer_norm_eps,
            addresses.ctypes.data,
            batch_size,
            self._cells,
            threads or native.thread_count(),
            native.LEVELS.index(level),
            native.BITS[precision],
        )
        if not self._engine:
            raise DeviceError("there is not enough memory for the native engine")
        weakref.finalize(self, library.engine_free, self._engine)

    def prefill(self, rows: Rows) -> NDArray:
        """Read B rows, or one for all, from an empty cache. → (B, V)"""
        self.length = 0
        logits = self._read(np.array(rows, dtype=np.int32))
        if len(logits) < self._batch_size:  # one prompt for the whole batch is read once
            for part in self._held():
                part[:, 1:] = part[:, :1].copy()  # else NumPy copies all, lest they overlap
            logits = np.repeat(logits, self._batch_size, axis=0)
        return logits

    def step(self, ids: Sequence[int]) -> NDArray:
        """Read one more token a row. (B,) → (B, V)"""
        return self._read(np.array(ids, dtype=np.int32)[:, None])

    def extend(self, rows: Rows) -> NDArray:
        """Read T more tokens of B rows, with logits after each. → (B, T, V)"""
        return self._read(np.array(rows, dtype=np.int32), every=True)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(length, self.length)

    def reorder(self, rows: Sequence[int]) -> None:
        """Go on with what these B rows remember, in this order."""
        for part in self._held():
            part[...] = part[:, list(rows)]

    def _held(self) -> list[NDArray]:
        """What the KV cache holds by now: views (L, B, H, …)."""
        panels = -(-self.length // PANEL)
        return [
            self._keys[:, :, :, :panels],
            self._values[:, :, :, :panels],
            self._key_scales[..., : self.length],
            self._value_scales[..., : self.length],
        ]

    def _read(self, ids: NDArray, *, every: bool = False) -> NDArray:
        """Logits after the last of T ids, or every one. (B, T) → (B, V) or (B, T, V)"""
        B, T = ids.shape
        if self.length + T > self._capacity:
            raise ValueError(f"{self.length + T} tokens do not fit the KV cache")
        shape = (B, T) if every else (B,)
        logits = np.empty((*shape, self.config.vocab_size), dtype=np.float32)
        code = self._library.engine_read(
            self._engine,
            ids.ctypes.data,
            B,
            T,
            self.length,
            self._batch_size,
            self._cells,
            self._keys.ctypes.data,
            self._values.ctypes.data,
            self._key_scales.ctypes.data,
            self._value_scales.ctypes.data,
            every,
            logits.ctypes.data,
        )
        if code:
            raise ValueError(_ERRORS[code])
        self.length += T
        return logits


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
