"""Keys and values of every layer, so that each token is read once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.config.model import ModelConfig


class KVCache:
    """Keys and values of `slots` tokens in every layer, allocated once and written in place.

    Which token of which sequence lies in which slot is up to the caller. There are two more: slot
    `null`, which stays zero, and slot `scrap`, for what nobody will ask for.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.null, self.scrap = slots, slots + 1
        shape = (config.n_layers, slots + 2, 2 * config.emb_dim)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)  # (L, slots, 2C): keys, values


class CacheView:
    """The slots of a cache that T new tokens of each of B sequences write and attend to.

    `positions` (B, T) are those of the new tokens in their sequences, each one more than that
    before it; `new` (B, T) the slots to write them to; `held` (B, S) the slots of each sequence's
    tokens, the new ones included, in their order. What `held` says beyond the last new token is
    ignored. All are integers on the cache's device.
    """

    def __init__(self, cache: KVCache, positions: Tensor, new: Tensor, held: Tensor) -> None:
        self.positions, self.mask = positions, None
        T, S = positions.shape[1], held.shape[1]
        order = torch.arange(S, device=held.device)
        # A mask does not hide what is not finite: zero times that is not zero.
        self._held = held.masked_fill(order > positions[:, -1:], cache.null)
        self._cache, self._new = cache, new
        if S > T:  # else no sequence has a past
            future = order > positions[:, None, :, None]
            zeros = torch.zeros(future.shape, device=held.device, dtype=cache.kv.dtype)
            self.mask = zeros.masked_fill(future, -torch.inf)  # (B, 1, T, S), to add to scores

    def write(self, layer: int, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values of one layer; those of all tokens.

        (B, T, 2C) → keys (B, S, C), values (B, S, C)
        """
        slots = self._cache.kv[layer]
        slots[self._new] = kv
        keys, values = F.embedding(self._held, slots).chunk(2, dim=-1)
        return keys, values
