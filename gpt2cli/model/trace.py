"""The activations of one forward pass: the numbers behind `gpt2 inspect`.

`trace` is the forward pass of `model`, written out to keep all activations; the functions
after it measure them. The letters for shapes are those of `model`, and N
counts the newest tokens, of T, for which details are kept.

All parts of the network add to one vector per token, the residual stream: first the embeddings,
then attention and feed-forward of each layer, 2L additions in all. The 2L + 1 layer norms
read it in between: norm j reads the stream before addition j, the final norm what is left.
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.arrays import NDArray
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2, CausalSelfAttention, LayerNorm, TransformerBlock


@dataclass(frozen=True, slots=True)
class Trace:
    """What one pass over T tokens computed, of its last N; `heads` and embeddings of the last."""

    stream: Tensor  # (2L + 1, N, C): before each addition, and at the end
    added: Tensor  # (2L, N, C): by attention and feed-forward of each layer in turn
    attention: Tensor  # (L, H, N, T): how much of each token goes into which; rows sum to 1
    heads: Tensor  # (L, H, C): what each head adds, the bias after all heads left out
    attention_bias: Tensor  # (L, C): that bias, or what an edit has put in attention's place
    steered: Tensor  # (C,): what edits of the stream added to it
    token_embedding: Tensor  # (C,)
    position_embedding: Tensor  # (C,)


@torch.inference_mode()
def trace(model: GPT2, ids: Sequence[int], window: int, edits: Edits | None = None) -> Trace:
    """Read T tokens as `GPT2.hidden` does and keep what happens to the last `window`.

    With `edits` that is what happens under them. Raises `ValueError` for no tokens and for more
    than the context holds.
    """
    T = len(ids)
    if not 1 <= T <= model.config.context_length:
        raise ValueError(f"{T} tokens in a context of {model.config.context_length}")
    weight = model.token_embedding.weight
    tokens = weight[torch.tensor(ids, device=weight.device)]  # (T, C)
    embedded = model.position_embedding.weight[:T]
    positions = torch.arange(T, device=weight.device)
    edits = edits or Edits()
    edit, seen = edits.at(positions), edits.mask(_causal(positions), positions)
    assert seen is not None
    x = tokens + embedded
    stream, added, attention, shares, steered = [], [], [], [], torch.zeros_like(x[-1])

    for layer, block in enumerate(_blocks(model)):
        before, x = x, edit("stream", layer, x)
        steered = steered + x[-1] - before[-1]
        stream.append(_newest(x, window))
        weights, mixed = _attend(block.attention, block.norm1(x), seen)
        attention.append(_newest(weights, window))
        mixed = edit("heads", layer, mixed.transpose(0, 1).reshape(T, -1))  # (T, C)
        by_heads = block.attention.out(mixed)
        by_attention = edit("attention", layer, by_heads)
        replaced = None if by_attention is by_heads else by_attention[-1]
        shares.append(_shares(block.attention, mixed[-1], replaced))
        x = x + by_attention
        stream.append(_newest(x, window))
        by_feed_forward = edit("feed_forward", layer, block.feed_forward(block.norm2(x)))
        x = x + by_feed_forward
        added += [_newest(by_attention, window), _newest(by_feed_forward, window)]
    stream.append(_newest(x, window))

    return Trace(
        torch.stack(stream),
        torch.stack(added),
        torch.stack(attention),
        torch.stack([heads for heads, _ in shares]),
        torch.stack([bias for _, bias in shares]),
        steered,
        tokens[-1],
        embedded[-1],
    )


def _causal(positions: Tensor) -> Tensor:
    """Which tokens each attends to: itself and those before it. (T,) → (1, T, T)"""
    return (positions <= positions[:, None])[None]


def _blocks(model: GPT2) -> Sequence[TransformerBlock]:
    return cast("Sequence[TransformerBlock]", model.blocks)


def _newest(rows: Tensor, window: int) -> Tensor:
    """The last of T rows, copied, so that the others can be freed. (…, T, any) → (…, N, any)"""
    return rows[..., -window:, :].clone()


def _attend(attention: CausalSelfAttention, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The weights softmax(q kᵀ / √D) and the values they mix. (T, C) → (H, T, T), (H, T, D)

    `seen` (1, T, T) says which tokens each attends to.
    """
    T, C = x.shape
    q, k, v = (
        part.view(T, -1, attention.head_dim).transpose(0, 1)  # (H, T, D)
        for part in attention.qkv(x).split(C, dim=-1)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(attention.head_dim)  # (H, T, T)
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return weights, weights @ v


def _shares(
    attention: CausalSelfAttention, mixed: Tensor, replaced: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What each head adds, D rows of the output matrix times its values, and what all share.

    That is the bias; where an edit has `replaced` all of it, no head has a part in it.
    (C,) → (H, C), (C,)
    """
    values = mixed.view(-1, attention.head_dim)  # (H, D)
    if replaced is not None:
        return mixed.new_zeros(len(values), len(mixed)), replaced
    rows = attention.out.weight.view(*values.shape, -1)  # (H, D, C)
    return torch.einsum("hd,hdc->hc", values, rows), cast("Tensor", attention.out.bias)


@torch.inference_mode()
def lens(model: GPT2, stream: Tensor) -> Tensor:
    """The logit lens: what a layer would say, were it the last. (N, C) → logits (N, V)

    Final norm and head, applied to the stream after any layer. nostalgebraist 2020,
    "interpreting GPT: the logit lens" (lesswrong.com/posts/AcKRB8wDpdaN6v6ru).
    """
    return model.head(model.final_norm(stream))


@dataclass(frozen=True, slots=True)
class NormStatistics:
    """Mean and variance over the C numbers of each vector, at 2L + 1 norms. (2L + 1, N) each

    Of what comes in, of that normalised (mean 0 and variance 1 but for ε), and of what goes
    out once it was scaled and shifted.
    """

    mean_in: NDArray
    variance_in: NDArray
    mean_normalised: NDArray
    variance_normalised: NDArray
    mean_out: NDArray
    variance_out: NDArray


@torch.inference_mode()
def norm_statistics(model: GPT2, trace: Trace) -> NormStatistics:
    """What each norm does to the stream, computed from its input and its own output."""
    columns = []
    for norm, x in zip(_norms(model), trace.stream, strict=True):
        stages = x, F.layer_norm(x, norm.scale.shape, eps=norm.eps), norm(x)
        columns.append([m for y in stages for m in (y.mean(-1), y.var(-1, correction=0))])
    return NormStatistics(*(_array(torch.stack(column)) for column in zip(*columns, strict=True)))


def _norms(model: GPT2) -> list[LayerNorm]:
    """All 2L + 1, in the order in which they read the stream."""
    return [norm for block in _blocks(model) for norm in (block.norm1, block.norm2)] + [
        model.final_norm
    ]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each part adds to one token's logit after the last token; together, the logit."""

    token_embedding: float
    position_embedding: float
    heads: NDArray  # (L, H)
    attention_bias: NDArray  # (L,): of the output matrix that all heads of a layer share
    feed_forward: NDArray  # (L,)
    steering: float  # by edits of the stream
    final_shift: float  # of the final norm

    @property
    def total(self) -> float:
        """The logit."""
        embeddings = self.token_embedding + self.position_embedding
        layers = self.heads.sum() + self.attention_bias.sum() + self.feed_forward.sum()
        return float(embeddings + layers + self.steering + self.final_shift)

    def parts(self) -> dict[str, float]:
        """All of them by name, heads as layer.head; the largest first, whatever the sign."""
        parts = {
            "token embedding": self.token_embedding,
            "position embedding": self.position_embedding,
            "shift of the final norm": self.final_shift,
            **({"steering": self.steering} if self.steering else {}),
        }
        for layer, heads in enumerate(self.heads.tolist()):
            parts |= {f"head {layer}.{head}": value for head, value in enumerate(heads)}
            parts[f"attention bias {layer}"] = float(self.attention_bias[layer])
            parts[f"feed-forward {layer}"] = float(self.feed_forward[layer])
        return dict(sorted(parts.items(), key=lambda part: -abs(part[1])))


@torch.inference_mode()
def contributions(model: GPT2, trace: Trace, token: int) -> Contributions:
    """Direct logit attribution: split the logit of `token` by who wrote to the stream.

    With the final norm's σ held at its actual value, the logit is linear in the stream, and
    the stream is a sum. Effects of a part by way of later parts count as theirs. In Elhage et
    al. 2021 it is the "direct path".
    """
    norm, x = model.final_norm, trace.stream[-1, -1]
    towards = model.token_embedding.weight[token]  # (C,)
    sigma = torch.sqrt(x.var(correction=0) + norm.eps)
    # (y − mean(y)) · d equals y · (d − mean(d)): taking the mean moves to the constant side.
    direction = towards * norm.scale
    direction = (direction - direction.mean()) / sigma
    return Contributions(
        token_embedding=float(trace.token_embedding @ direction),
        position_embedding=float(trace.position_embedding @ direction),
        heads=_array(trace.heads @ direction),
        attention_bias=_array(trace.attention_bias @ direction),
        feed_forward=_array(trace.added[1::2, -1] @ direction),
        steering=float(trace.steered @ direction),
        final_shift=float(norm.shift @ towards),
    )


def _array(tensor: Tensor) -> NDArray:
    return tensor.float().cpu().numpy()
