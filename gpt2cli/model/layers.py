"""The forward pass of `model`, written out: everything that a layer computes, layer by layer.

Of all layers together that may be more than memory holds (of attention alone 5 GB where 1558M
reads 1,024 tokens), so one is kept at a time. The letters for shapes are those of `model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2, CausalSelfAttention, TransformerBlock


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer computes of T tokens; `before`, `between` and `after` are the stream.

    `heads`, `attention` and `feed_forward` are what goes on after edits. Where one has put
    something in the place of all that attention or feed-forward add, heads or neurons have no
    part in that.
    """

    steered: Tensor  # (T, C): what edits have added to the stream before it went in
    before: Tensor  # (T, C)
    weights: Tensor  # (H, T, T): how much of each token goes into which; rows sum to 1
    heads: Tensor  # (T, C): what the heads mix, side by side, D numbers each
    attention: Tensor  # (T, C)
    between: Tensor  # (T, C)
    feed_forward: Tensor  # (T, C)
    after: Tensor  # (T, C)
    attention_is_replaced: bool
    feed_forward_is_replaced: bool


@torch.inference_mode()
def layers(model: GPT2, ids: Sequence[int], edits: Edits | None = None) -> Iterator[Layer]:
    """Read T tokens as `GPT2.hidden` does, under `edits` if there are any.

    Raises `ValueError` for no tokens and for more than the context holds.
    """
    T, device = len(ids), model.token_embedding.weight.device
    if not 1 <= T <= model.config.context_length:
        raise ValueError(f"{T} tokens in a context of {model.config.context_length}")
    edit, attended = (edits or Edits()).at(torch.arange(T, device=device)), seen(model, T, edits)
    x = embedded(model, ids)
    for number, block in enumerate(blocks(model)):
        given, x = x, edit("stream", number, x)
        weights, mixed = _attend(block.attention, block.norm1(x), attended)
        mixed = edit("heads", number, mixed.transpose(0, 1).reshape(T, -1))
        by_heads = block.attention.out(mixed)
        attention = edit("attention", number, by_heads)
        between = x + attention
        by_neurons = block.feed_forward(block.norm2(between))
        feed_forward = edit("feed_forward", number, by_neurons)
        after = between + feed_forward
        yield Layer(
            x - given,
            x,
            weights,
            mixed,
            attention,
            between,
            feed_forward,
            after,
            attention is not by_heads,
            feed_forward is not by_neurons,
        )
        x = after


def blocks(model: GPT2) -> Sequence[TransformerBlock]:
    """All L of them."""
    return cast("Sequence[TransformerBlock]", model.blocks)


def embedded(model: GPT2, ids: Sequence[int]) -> Tensor:
    """The stream before all layers. → (T, C)"""
    weight = model.token_embedding.weight
    tokens = weight[torch.tensor(ids, device=weight.device)]
    return tokens + model.position_embedding.weight[: len(ids)]


def seen(model: GPT2, T: int, edits: Edits | None = None) -> Tensor:
    """Which tokens each attends to: itself and those before it, but for hidden ones. (1, T, T)"""
    positions = torch.arange(T, device=model.token_embedding.weight.device)
    causal = (positions <= positions[:, None])[None]
    return causal if edits is None else cast("Tensor", edits.mask(causal, positions))


def _attend(attention: CausalSelfAttention, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The weights softmax(q kᵀ / √D) and the values they mix. (T, C) → (H, T, T), (H, T, D)"""
    T, C = x.shape
    q, k, v = (
        part.view(T, -1, attention.head_dim).transpose(0, 1)  # (H, T, D)
        for part in attention.qkv(x).split(C, dim=-1)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(attention.head_dim)  # (H, T, T)
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return weights, weights @ v
