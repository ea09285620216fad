"""The activations of one forward pass: the numbers behind `gpt2 inspect`.

`trace` keeps what `layers` computes; the functions after it measure that. The letters for shapes
are those of `model`, and N counts the newest tokens, of T, for which details are kept.

All parts of the network add to one vector per token, the residual stream: first the embeddings,
then attention and feed-forward of each layer, 2L additions in all. The 2L + 1 layer norms
read it in between: norm j reads the stream before addition j, the final norm what is left.
Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"
(transformer-circuits.pub/2021/framework).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.arrays import NDArray
from gpt2cli.model.edits import Edits
from gpt2cli.model.gpt2 import GPT2, LayerNorm
from gpt2cli.model.layers import blocks, layers
from gpt2cli.progress import Advance

_FEW = 32


@dataclass(frozen=True, slots=True)
class Trace:
    """What one pass over T tokens computed, of its last N.

    Where an edit has put something in the place of all that attention or feed-forward add in a
    layer, that is `replaced`.
    """

    ids: tuple[int, ...]  # all T
    stream: Tensor  # (2L + 1, N, C): before each addition, and at the end
    added: Tensor  # (2L, N, C): by attention and feed-forward of each layer in turn
    attention: Tensor  # (L, H, N, T): how much of each token goes into which; rows sum to 1
    mixed: Tensor  # (L, N, C): what the heads mix, side by side, before the output matrix
    steered: Tensor  # (N, C): what edits of the stream have added to it
    replaced: tuple[bool, ...]  # 2L: of each addition

    def at(self, position: int) -> Trace:
        """The same of one token alone, as if the text ended with it; it is one of the N."""
        place = position - len(self.ids) + self.stream.shape[1]
        if not 0 <= place < self.stream.shape[1]:
            raise ValueError(f"position {position} is not one of those that were kept")
        one = slice(place, place + 1)
        return Trace(
            self.ids[: position + 1],
            self.stream[:, one],
            self.added[:, one],
            self.attention[:, :, one, : position + 1],
            self.mixed[:, one],
            self.steered[one],
            self.replaced,
        )


@torch.inference_mode()
def trace(
    model: GPT2,
    ids: Sequence[int],
    window: int,
    edits: Edits | None = None,
    advance: Advance = lambda _: None,
) -> Trace:
    """Read T tokens as `GPT2.hidden` does and keep what happens to the last `window`.

    With `edits` that is what happens under them. `advance` is called after each layer. Raises
    `ValueError` for no tokens and for more than the context holds.
    """
    stream: list[Tensor] = []
    added, attention, mixed, replaced = [], [], [], []
    steered = torch.zeros((), device=model.token_embedding.weight.device)
    after = None
    for layer in layers(model, ids, edits):
        stream += [_newest(layer.before, window), _newest(layer.between, window)]
        added += [_newest(layer.attention, window), _newest(layer.feed_forward, window)]
        attention.append(_newest(layer.weights, window))
        mixed.append(_newest(layer.heads, window))
        steered = steered + _newest(layer.steered, window)
        replaced += [layer.attention_is_replaced, layer.feed_forward_is_replaced]
        after = layer.after
        advance(1)
    assert after is not None  # a model has layers
    return Trace(
        tuple(ids),
        torch.stack([*stream, _newest(after, window)]),
        torch.stack(added),
        torch.stack(attention),
        torch.stack(mixed),
        steered,
        tuple(replaced),
    )


def _newest(rows: Tensor, window: int) -> Tensor:
    """The last of T rows, copied, so that the others can be freed. (…, T, any) → (…, N, any)"""
    return rows[..., -window:, :].clone()


@dataclass(frozen=True, slots=True)
class Writers:
    """What has written to the stream of the last token, besides feed-forward."""

    token_embedding: Tensor  # (C,)
    position_embedding: Tensor  # (C,)
    heads: Tensor  # (L, H, C): what each adds, the bias after all heads left out
    attention_bias: Tensor  # (L, C): that bias, or what an edit has put in attention's place


@torch.inference_mode()
def writers(model: GPT2, trace: Trace) -> Writers:
    """Attention taken apart: D rows of the output matrix times what a head mixes are its share."""
    heads, biases = [], []
    for number, block in enumerate(blocks(model)):
        attention = block.attention
        values = trace.mixed[number, -1].view(-1, attention.head_dim)  # (H, D)
        rows = attention.out.weight.view(*values.shape, -1)  # (H, D, C)
        shares = torch.einsum("hd,hdc->hc", values, rows)
        bias = cast("Tensor", attention.out.bias)
        if trace.replaced[2 * number]:
            shares, bias = torch.zeros_like(shares), trace.added[2 * number, -1]
        heads.append(shares)
        biases.append(bias)
    return Writers(
        model.token_embedding.weight[trace.ids[-1]],
        model.position_embedding.weight[len(trace.ids) - 1],
        torch.stack(heads),
        torch.stack(biases),
    )


@torch.inference_mode()
def lens(model: GPT2, stream: Tensor) -> Tensor:
    """The logit lens: what a layer would say, were it the last. (N, C) → logits (N, V)

    Final norm and head, applied to the stream after any layer. nostalgebraist 2020,
    "interpreting GPT: the logit lens" (lesswrong.com/posts/AcKRB8wDpdaN6v6ru).
    """
    x = model.final_norm(stream)
    if x.dim() == 2 and len(x) <= _FEW:
        # MKL makes a product of few rows up to 2.5 times as fast the other way round.
        logits = torch.mm(model.token_embedding.weight, x.T).T
        return logits.contiguous()
    return model.head(x)


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
    return [norm for block in blocks(model) for norm in (block.norm1, block.norm2)] + [
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
def contributions(
    model: GPT2, trace: Trace, token: int, wrote: Writers | None = None
) -> Contributions:
    """Direct logit attribution: split the logit of `token` by who wrote to the stream.

    With the final norm's σ held at its actual value, the logit is linear in the stream, and
    the stream is a sum. Effects of a part by way of later parts count as theirs. In Elhage et
    al. 2021 it is the "direct path". `wrote` is what `writers` has found, for several tokens.
    """
    wrote = wrote or writers(model, trace)
    towards = direction(model, trace, token)
    return Contributions(
        token_embedding=float(wrote.token_embedding @ towards),
        position_embedding=float(wrote.position_embedding @ towards),
        heads=_array(wrote.heads @ towards),
        attention_bias=_array(wrote.attention_bias @ towards),
        feed_forward=_array(trace.added[1::2, -1] @ towards),
        steering=float(trace.steered[-1] @ towards),
        final_shift=float(model.final_norm.shift @ model.token_embedding.weight[token]),
    )


def direction(model: GPT2, trace: Trace, token: int) -> Tensor:
    """What a vector in the last token's stream adds to the logit of `token`, as a product. (C,)"""
    norm, x = model.final_norm, trace.stream[-1, -1]
    sigma = torch.sqrt(x.var(correction=0) + norm.eps)
    # (y − mean(y)) · d equals y · (d − mean(d)): taking the mean moves to the constant side.
    found = model.token_embedding.weight[token] * norm.scale
    return (found - found.mean()) / sigma


@dataclass(frozen=True, slots=True)
class Neurons:
    """The K strongest neurons of each layer, those of the largest activation first, by its size.

    `logit` is what each adds to a token's logit, through its row of the down matrix.
    """

    index: NDArray  # (L, K)
    activation: NDArray  # (L, K): after the GELU
    logit: NDArray  # (L, K)


@torch.inference_mode()
def neurons(model: GPT2, trace: Trace, token: int, count: int) -> Neurons:
    """What the last token activates in feed-forward, and what that adds to the logit of `token`.

    All neurons of a layer and the bias after them add up to its contribution; where an edit has
    replaced what the layer adds, neurons add nothing. Geva et al. 2022 (arXiv:2203.14680).
    """
    towards, found = direction(model, trace, token), []
    for number, block in enumerate(blocks(model)):
        inside = block.feed_forward
        x = trace.stream[2 * number + 1, -1:]  # (1, C)
        activation = inside.gelu(inside.up(block.norm2(x)))[0]  # (4C,)
        index = activation.abs().topk(min(count, len(activation))).indices
        strongest = activation[index]
        logit = strongest * (inside.down.weight[index] @ towards)
        if trace.replaced[2 * number + 1]:
            logit = torch.zeros_like(logit)
        found.append((index, strongest, logit))
    indices, activations, logits = (torch.stack(column) for column in zip(*found, strict=True))
    return Neurons(indices.cpu().numpy(), _array(activations), _array(logits))


def _array(tensor: Tensor) -> NDArray:
    return tensor.float().cpu().numpy()
