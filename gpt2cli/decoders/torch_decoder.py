"""The `Decoder` protocol on top of `model.GPT2`: any device that PyTorch runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2cli.decoders.graphs import CudaGraphs, GraphableStep
from gpt2cli.decoders.protocol import Rows
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.kv_cache import KVCache


class TorchDecoder:
    """Decodes B rows at once over a KV cache of `capacity` tokens per row.

    A CUDA GPU replays its steps as graphs; elsewhere they are the model's own, unless
    `compiled` asks for `torch.compile`.
    """

    def __init__(
        self,
        model: GPT2,
        batch_size: int = 1,
        capacity: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        weight = model.token_embedding.weight
        self.device = weight.device
        self.context_length = model.config.context_length
        capacity = min(capacity or self.context_length, self.context_length)
        self._cache = KVCache(model.config, batch_size, capacity, self.device, weight.dtype)
        self._static = None
        if weight.is_cuda or compiled:
            record = CudaGraphs(self.device) if weight.is_cuda else None
            self._static = GraphableStep(model, self._cache, record, compiled)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @torch.inference_mode()
    def prefill(self, rows: Rows) -> Any:
        """Read B rows, or one for all, from an empty cache. → (B, V)"""
        self._cache.length = 0
        ids = torch.tensor(rows, device=self.device)
        if ids.shape[0] == self.batch_size:
            return _export(self._logits(ids, self._cache))
        # One prompt for the whole batch is read once and copied.
        single = KVCache(self.model.config, 1, ids.shape[1], self.device, self._cache.keys.dtype)
        logits = self._logits(ids, single)
        self._cache.keys[:, :, :, : single.length] = single.keys
        self._cache.values[:, :, :, : single.length] = single.values
        self._cache.length = single.length
        return _export(logits.repeat(self.batch_size, 1))

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> Any:
        """Read one more token per row. (B,) → (B, V)

        Raises `GPT2CLIError` if the step cannot be compiled or recorded here.
        """
        if self._static is None:
            column = torch.tensor(ids, device=self.device)[:, None]
            return _export(self._logits(column, self._cache))
        return _export(self._static(ids))

    @torch.inference_mode()
    def extend(self, rows: Rows) -> Any:
        """Read T more tokens of B rows, with logits after each. → (B, T, V)"""
        return _export(self.model(torch.tensor(rows, device=self.device), self._cache))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._cache.length = min(length, self._cache.length)

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Continue with the caches of these B rows, in this order."""
        index = torch.tensor(rows, device=self.device)
        for cache in (self._cache.keys, self._cache.values):
            cache[:, :, :, : self.length] = cache[:, index, :, : self.length]

    def _logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits after the last of T ids. (B, T) → (B, V)"""
        return self.model.head(self.model.hidden(ids, cache)[:, -1])


def _export(logits: Tensor) -> Any:
    """Logits in fp32, as the array type that samples fastest on their device.

    Sampling sorts, which NumPy does many times faster than PyTorch on a CPU.
    """
    exported = logits.to(torch.float32, copy=True)  # a graph overwrites its result
    return exported if logits.is_cuda else exported.cpu().numpy()
