"""Attention from near: one head for one token, and the maps of all heads of a text.

That a weight alone does not say how much of a token flows is Kobayashi et al. 2020, "Attention is
Not Only a Weight" (arXiv:2004.10102): a head may look at what has next to no value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.arrays import NDArray
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.layers import blocks, layers, seen
from gpt2cli.progress import Advance


@dataclass(frozen=True, slots=True)
class Head:
    """What one head does for the token at one position of T; D is the head's width."""

    scores: NDArray  # (T,): q · k / √D with every token, before those that it may not see are cut
    weights: NDArray  # (T,): their softmax; 0 where it may not look
    values: NDArray  # (T,): lengths of the values, each times its weight
    q: NDArray  # (D,): of the position, as k and v
    k: NDArray
    v: NDArray
    output_norm: float  # length of what the head adds to the stream, after the output matrix
    map: NDArray  # (T, T): the weights of all positions


@torch.inference_mode()
def head(
    model: GPT2,
    ids: Sequence[int],
    layer: int,
    number: int,
    position: int,
    edits: Edits | None = None,
    *,
    stream: Tensor | None = None,
) -> Head:
    """Head `number` of a `layer` for one of T tokens, under `edits` if there are any.

    `stream` (T, C) is what goes into the layer, if that is known. A head that is switched off
    still attends, and adds nothing, or its mean.
    """
    edits, T = edits or Edits(), len(ids)
    if stream is None:
        reading = layers(model, ids, edits)
        stream = next(one.before for i, one in enumerate(reading) if i == layer)
    block = blocks(model)[layer]
    attention, D = block.attention, block.attention.head_dim
    q, k, v = (
        part.view(T, -1, D).transpose(0, 1)  # (H, T, D)
        for part in attention.qkv(block.norm1(stream)).chunk(3, dim=-1)
    )
    scores = q[number] @ k[number].T / math.sqrt(D)  # (T, T)
    attended = seen(model, T, edits)[0]
    weights = scores.masked_fill(~attended, -math.inf).softmax(-1)
    return Head(
        scores=_array(scores[position]),
        weights=_array(weights[position]),
        values=_array(weights[position] * v[number].norm(dim=-1)),
        q=_array(q[number, position]),
        k=_array(k[number, position]),
        v=_array(v[number, position]),
        output_norm=_output_norm(model, (layer, number, position), weights @ v[number], edits),
        map=_array(weights),
    )


def _output_norm(model: GPT2, place: tuple[int, int, int], mixed: Tensor, edits: Edits) -> float:
    """The length of what a head adds at a position, of what it mixes there. (T, D)"""
    layer, number, position = place
    T, D = mixed.shape
    edit = edits.at(torch.arange(T, device=mixed.device))
    every = mixed.new_zeros(T, model.config.emb_dim)
    own = slice(number * D, (number + 1) * D)
    every[:, own] = mixed
    every = edit("heads", layer, every)
    added = every[position, own] @ blocks(model)[layer].attention.out.weight[own]  # (C,)
    unedited = every.new_zeros(T, model.config.emb_dim)
    if edit("attention", layer, unedited) is not unedited:
        return 0.0  # something else is in the place of all heads
    return float(added.norm())


@dataclass(frozen=True, slots=True)
class Maps:
    """How much each token takes from which, in all heads, as means over `block` × `block` tokens.

    N is the number of blocks, the last of which may be smaller. A block on the diagonal counts
    the zeros of tokens that may not look ahead.
    """

    block: int
    weights: NDArray  # (L, H, N, N)


@torch.inference_mode()
def maps(
    model: GPT2,
    ids: Sequence[int],
    most: int = 64,
    edits: Edits | None = None,
    *,
    attention: Tensor | None = None,
    advance: Advance = lambda _: None,
) -> Maps:
    """Attention of all heads in maps of up to `most` rows, each layer made smaller by itself.

    `attention` (L, H, T, T) is that of all layers, if it is known. `advance` is called after each
    layer that has to be computed.
    """
    block = -(-len(ids) // most)
    found = []
    every = (one.weights for one in layers(model, ids, edits)) if attention is None else attention
    for weights in every:
        found.append(_smaller(weights, block))
        if attention is None:
            advance(1)
    return Maps(block, _array(torch.stack(found)))


def _smaller(weights: Tensor, block: int) -> Tensor:
    """Means over blocks. (H, T, T) → (H, N, N)"""
    if block == 1:
        return weights
    # Blocks at the end count only the tokens that there are.
    return F.avg_pool2d(weights[None], block, ceil_mode=True, count_include_pad=False)[0]


def _array(tensor: Tensor) -> NDArray:
    return tensor.float().cpu().numpy()
