"""Keys and values of every layer, so that each token is read once."""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2cli.config.model import ModelConfig


class KVCache:
    """Keys and values of every layer, allocated once and written in place.

    Holds 2 · L · B · S · C numbers, S being `max_length`. `length` counts the tokens
    already processed; lowering it forgets the newest ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.n_layers, batch_size, config.n_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, H, S, D)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store T new keys and values of one layer; return all that it now holds.

        (B, H, T, D) → (B, H, S + T, D), for the first B sequences of the cache. Raises
        `ValueError` past `max_length`.
        """
        end = self.length + k.shape[2]
        if end > self.keys.shape[3]:
            raise ValueError(f"{end} tokens do not fit a KV cache of {self.keys.shape[3]}")
        B = len(k)
        self.keys[layer, :B, :, self.length : end] = k
        self.values[layer, :B, :, self.length : end] = v
        return self.keys[layer, :B, :, :end], self.values[layer, :B, :, :end]
