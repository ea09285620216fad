"""The `Decoder` protocol on top of `model.GPT2`: any device that PyTorch runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpt2cli.generation import Rows
from gpt2cli.model import GPT2, KVCache


class TorchDecoder:
    """Decodes B rows at once over a KV cache of `capacity` tokens a row."""

    def __init__(self, model: GPT2, batch_size: int = 1, capacity: int | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        weight = model.token_embedding.weight
        self.device = weight.device
        self.context_length = model.config.context_length
        capacity = min(capacity or self.context_length, self.context_length)
        self._cache = KVCache(model.config, batch_size, capacity, self.device, weight.dtype)

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
        """Read one more token a row. (B,) → (B, V)"""
        return _export(self._logits(torch.tensor(ids, device=self.device)[:, None], self._cache))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._cache.length = min(length, self._cache.length)

    def _logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits after the last of T ids. (B, T) → (B, V)"""
        return self.model.head(self.model.hidden(ids, cache)[:, -1])


def _export(logits: Tensor) -> Any:
    """Logits in fp32, as the array type that samples fastest where they are.

    Sampling sorts, which NumPy does many times faster than PyTorch on a CPU.
    """
    return logits.float() if logits.is_cuda else logits.float().cpu().numpy()
