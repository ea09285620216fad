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
from gpt2cli.model.gpt2 import GPT2, CausalSelfAttention, LayerNorm, TransformerBlock


@dataclass(frozen=True, slots=True)
class Trace:
    """What one pass over T tokens computed, of its last N; `heads` and embeddings of the last."""

    stream: Tensor  # (2L + 1, N, C): before each addition, and at the end
    added: Tensor  # (2L, N, C): by attention and feed-forward of each layer in turn
    attention: Tensor  # (L, H, N, T): how much of each token goes into which; rows sum to 1
    heads: Tensor  # (L, H, C): what each head adds, the bias after all heads left out
    token_embedding: Tensor  # (C,)
    position_embedding: Tensor  # (C,)


@torch.inference_mode()
def trace(model: GPT2, ids: Sequence[int], window: int) -> Trace:
    """Read T tokens as `GPT2.hidden` does and keep what happens to the last `window`.

    Raises `ValueError` for no tokens and for more than the context holds.
    """
    T = len(ids)
    if not 1 <= T <= model.config.context_length:
        raise ValueError(f"{T} tokens in a context of {model.config.context_length}")
    weight = model.token_embedding.weight
    tokens = weight[torch.tensor(ids, device=weight.device)]  # (T, C)
    positions = model.position_embedding.weight[:T]
    x = tokens + positions
    stream, added, attention, heads = [_newest(x, window)], [], [], []

    for block in _blocks(model):
        weights, mixed = _attend(block.attention, block.norm1(x))
        attention.append(_newest(weights, window))
        heads.append(_output_of_heads(block.attention, mixed[:, -1]))
        by_attention = block.attention.out(mixed.transpose(0, 1).reshape(T, -1))
        x = x + by_attention
        stream.append(_newest(x, window))
        by_feed_forward = block.feed_forward(block.norm2(x))
        x = x + by_feed_forward
        stream.append(_newest(x, window))
        added += [_newest(by_attention, window), _newest(by_feed_forward, window)]

    return Trace(
        torch.stack(stream),
        torch.stack(added),
        torch.stack(attention),
        torch.stack(heads),
        tokens[-1],
        positions[-1],
    )


def _blocks(model: GPT2) -> Sequence[TransformerBlock]:
    return cast("Sequence[TransformerBlock]", model.blocks)


def _newest(rows: Tensor, window: int) -> Tensor:
    """The last of T rows, copied, so that the others can be freed. (…, T, any) → (…, N, any)"""
    return rows[..., -window:, :].clone()


def _attend(attention: CausalSelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights softmax(q kᵀ / √D) and the values they mix. (T, C) → (H, T, T), (H, T, D)"""
    T, C = x.shape
    q, k, v = (
        part.view(T, -1, attention.head_dim).transpose(0, 1)  # (H, T, D)
        for part in attention.qkv(x).split(C, dim=-1)
    )
    scores = q @ k.transpose(-1, -2) / math.sqrt(attention.head_dim)  # (H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    return weights, weights @ v


def _output_of_heads(attention: CausalSelfAttention, mixed: Tensor) -> Tensor:
    """What each head adds: its D rows of the output matrix times its values. (H, D) → (H, C)"""
    rows = attention.out.weight.view(*mixed.shape, -1)  # (H, D, C)
    return torch.einsum("hd,hdc->hc", mixed, rows)


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
    final_shift: float  # of the final norm

    @property
    def total(self) -> float:
        """The logit."""
        embeddings = self.token_embedding + self.position_embedding
        layers = self.heads.sum() + self.attention_bias.sum() + self.feed_forward.sum()
        return float(embeddings + layers + self.final_shift)

    def parts(self) -> dict[str, float]:
        """All of them by name, heads as layer.head; the largest first, whatever the sign."""
        parts = {
            "token embedding": self.token_embedding,
            "position embedding": self.position_embedding,
            "shift of the final norm": self.final_shift,
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
    out_biases = [cast("Tensor", block.attention.out.bias) for block in _blocks(model)]
    return Contributions(
        token_embedding=float(trace.token_embedding @ direction),
        position_embedding=float(trace.position_embedding @ direction),
        heads=_array(trace.heads @ direction),
        attention_bias=_array(torch.stack(out_biases) @ direction),
        feed_forward=_array(trace.added[1::2, -1] @ direction),
        final_shift=float(norm.shift @ towards),
    )


def _array(tensor: Tensor) -> NDArray:
    return tensor.float().cpu().numpy()
