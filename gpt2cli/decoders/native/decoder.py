"""The `Decoder` protocol on top of `engine.cpp`."""

from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native import abi, quantize
from gpt2cli.decoders.paged import PagedDecoder
from gpt2cli.decoders.pages import PAGE, Chunk
from gpt2cli.errors import DeviceError
from gpt2cli.sampling.sampler import Draw
from gpt2cli.system.precision import QUANTIZED
from gpt2cli.threads import thread_count
from gpt2cli.weights.safetensors import StoredTensor

_ERRORS = {
    1: "a token id is outside the vocabulary",
    2: "the tokens do not fit the context or the KV cache",
}
_FORKED = 3
_KEPT_ROWS = 16  # of a token embedding: each may bring in 2 MB of the file around it
LITTLE = 50_000_000  # bytes of keys, or values: a full context of 124M in fp32 takes 38 MB
_IN_A_FORK = "a decoder cannot be used in a forked process; make a new one there"


class EngineDecoder(PagedDecoder):
    """Decodes with the native engine, over a KV cache with room for `tokens` tokens.

    `weights` are fp32 arrays under the names of `model.GPT2`, used where they are: they may
    be memory-mapped. With `precision` bf16 or fp16 the matrices have 16 bits per weight, and all
    is computed in fp32. With int8 or int4 they have 8 or 4, in groups of 64 that share a scale;
    the inputs of each layer have 8 bits, grouped in the same way, and so has the KV cache, with
    a scale per token and head. `codes` are those matrices if
    `quantize` has made them already. `threads` defaults to OMP_NUM_THREADS or all cores. `level`
    limits the engine to one of `native.LEVELS`, for tests. `size` and `name` are those of
    `PagedDecoder`.

    The logits of a sequence are the same to the last bit, whatever is read beside it, in chunks
    of any length, on any number of threads. Raises `DeviceError` if the engine is not available,
    or memory is not.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray],
        tokens: int | None = None,
        *,
        precision: str = "fp32",
        codes: Mapping[str, NDArray] | None = None,
        threads: int | None = None,
        level: str = native.LEVELS[-1],
        size: int | None = None,
        name: str = "the model",
    ) -> None:
        super().__init__(config, tokens, size, name)
        self._library = native.library()
        if precision != "fp32" and codes is None:
            codes = quantize.encode(config, weights, precision)
        assert self._library.engine_page_length() == PAGE
        # The engine has the addresses of the cache and the weights, which are kept alive here.
        quantized = precision in QUANTIZED
        self._cache = _Cache(config, self.pages, np.int8 if quantized else np.float32)
        self._weights = _in_order(config, weights, codes or {}, quantized)
        self._rows_read = 0
        embedding = self._weights[0]
        assert embedding is not None
        self._embedding = StoredTensor(embedding, "float32") if quantized else None
        addresses = np.array([0 if w is None else w.ctypes.data for w in self._weights], np.uintp)
        self._engine = self._library.engine_new(
            _sizes(config),
            self._cache.addresses(),
            addresses.ctypes.data,
            native.TYPES.index(precision),
            threads or thread_count(),
            native.LEVELS.index(level),
        )
        if not self._engine:
            raise DeviceError("there is not enough memory for the native engine")
        # Not as the process ends: another thread may still compute, and would be waited for.
        weakref.finalize(self, self._library.engine_free, self._engine).atexit = False

    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> NDArray:
        headers: list[tuple[int, int, bool, int]] = []
        ids: list[int] = []
        pages: list[int] = []
        rows = 0
        for chunk, table in zip(chunks, tables, strict=True):
            headers.append((chunk.start, len(chunk.ids), chunk.every, len(pages)))
            ids += chunk.ids
            pages += table
            rows += len(chunk.ids) if chunk.every else 1
        arrays = [np.array(numbers, dtype=np.int32) for numbers in (headers, ids, pages)]
        logits = np.empty((rows, self.config.vocab_size), dtype=np.float32)
        addresses = [array.ctypes.data for array in arrays]
        job = abi.Job(*addresses, len(chunks), logits.ctypes.data)
        code = self._library.engine_read(self._engine, job)
        if code == _FORKED:
            raise DeviceError(_IN_A_FORK)
        if code:
            raise ValueError(_ERRORS[code])
        self._release_rows(len(ids))
        return logits

    def _release_rows(self, count: int) -> None:
        """Let go of a file of fp32 weights, of which only rows of the embedding are used."""
        self._rows_read += count
        if self._embedding and self._rows_read >= _KEPT_ROWS:
            self._rows_read = 0
            self._embedding.release()

    @property
    def draw(self) -> Draw:
        """A draw by the engine, on all its threads."""
        return self._draw

    def _draw(
        self,
        logits: NDArray,
        rows: Sequence[int],
        temperatures: Sequence[float],
        top_p: Sequence[float],
        uniforms: Sequence[float],
    ) -> list[int]:
        """Draw from some rows of logits by temperature and top-p, on all threads. (B, V) → (N,)

        What `sampling.nucleus.draw_one` does for each, but for the last bit of an exponential.
        """
        if logits.strides[1] != logits.itemsize:
            logits = np.ascontiguousarray(logits)
        arrays: list[NDArray] = [
            np.array(rows, dtype=np.int32),
            np.array(temperatures, dtype=np.float32),
            np.array(top_p, dtype=np.float64),
            np.array(uniforms, dtype=np.float64),
        ]
        chosen = np.empty(len(rows), dtype=np.int32)
        job = abi.DrawJob(
            logits.ctypes.data,
            logits.strides[0] // logits.itemsize,
            *(array.ctypes.data for array in arrays),
            chosen.ctypes.data,
            len(rows),
            logits.shape[1],
        )
        if self._library.engine_draw(self._engine, job):
            raise DeviceError(_IN_A_FORK)
        tokens: list[int] = chosen.tolist()
        return tokens

    def _copy_page(self, source: int, target: int) -> None:
        self._cache.copy_page(source, target)


class _Cache:
    """Keys and values of all pages. Memory that is never written is never taken from the system."""

    def __init__(self, config: ModelConfig, pages: int, number: type[Any]) -> None:
        heads = (config.n_layers, config.n_heads, pages)
        width = config.head_dim if number is np.float32 else -(-config.head_dim // 16) * 16
        numbers = (*heads, PAGE * width)
        self._keys, self._values = (_zeros(numbers, number) for _ in range(2))
        self._key_scales, self._value_scales = (
            _zeros((*heads, PAGE), np.float32) for _ in range(2)
        )

    def copy_page(self, source: int, target: int) -> None:
        """Copy all numbers of one page to another."""
        for part in (self._keys, self._values, self._key_scales, self._value_scales):
            part[:, :, target] = part[:, :, source]

    def addresses(self) -> abi.KVCache:
        """The same for the engine."""
        return abi.KVCache(
            pages=self._keys.shape[2],
            keys=self._keys.ctypes.data,
            values=self._values.ctypes.data,
            key_scales=self._key_scales.ctypes.data,
            value_scales=self._value_scales.ctypes.data,
        )


def _zeros(shape: tuple[int, ...], number: type[Any]) -> NDArray:
    """Zeros that take memory only where they are written, by 4 kB if they are many.

    NumPy asks for pages of 2 MB, of which a few tokens per head would touch all.
    """
    count = math.prod(shape)
    size = count * np.dtype(number).itemsize
    if size <= LITTLE or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, dtype=number)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # of a system without pages of 2 MB
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=number, count=count).reshape(shape)


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
    config: ModelConfig,
    weights: Mapping[str, NDArray],
    codes: Mapping[str, NDArray],
    quantized: bool,
) -> list[NDArray | None]:
    """All weights as `engine_new` expects them; None for what there is not."""

    def floats(name: str) -> NDArray | None:
        return np.ascontiguousarray(weights[name], dtype=np.float32) if name in weights else None

    coded = codes.get(quantize.HEAD)
    embedding = floats(quantize.HEAD) if quantized or coded is None else coded
    ordered = [embedding, None, floats("position_embedding.weight")]
    ordered += [coded if quantized else None, None]
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
