"""GPT-2 in PyTorch: the readable reference that every other decoder is compared with.

Papers: GPT-2, Radford et al. 2019, "Language Models are Unsupervised Multitask Learners";
the Transformer, Vaswani et al. 2017 (arXiv:1706.03762); OpenAI's released `model.py`
(github.com/openai/gpt-2), which fixes what the papers leave open.

Shapes are written with these letters, here and in every other module:

    B  sequences in a batch        C  width of the model (emb_dim)
    T  new tokens in this call     H  attention heads
    S  tokens attended to          D  width of a head, C / H
    L  layers                      V  vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt2cli.config.model import ModelConfig
from gpt2cli.model.dropout import Dropout
from gpt2cli.model.edits import Edit, Edits, unedited
from gpt2cli.model.kv_cache import CacheView


class LayerNorm(nn.Module):
    """Each vector to zero mean and unit variance, then scaled and shifted.

    y = (x − μ) / √(σ² + ε) · scale + shift, with μ and the biased variance σ² taken over
    the last dimension. Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, emb_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def formula(self, x: Tensor) -> Tensor:
        """The definition, step by step. (…, C) → (…, C)"""
        mean = x.mean(dim=-1, keepdim=True)
        variance = x.var(dim=-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(variance + self.eps) * self.scale + self.shift

    def forward(self, x: Tensor) -> Tensor:
        """The same as `formula` in one fused kernel, as the tests verify. (…, C) → (…, C)"""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """x · Φ(x), by OpenAI's tanh approximation of the Gaussian CDF Φ.

    ½ x (1 + tanh(√(2/π) (x + 0.044715 x³))). Hendrycks & Gimpel 2016, arXiv:1606.08415.
    """

    def formula(self, x: Tensor) -> Tensor:
        """The definition. Any shape, kept."""
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def forward(self, x: Tensor) -> Tensor:
        """The same in one fused kernel. Any shape, kept."""
        return F.gelu(x, approximate="tanh")


class Linear(nn.Module):
    """y = x W + b with W stored (in, out), as in OpenAI's checkpoints.

    Keeping their layout lets released weights be used in place from a memory-mapped file.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)"""
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ self.weight if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        return y.view(*x.shape[:-1], -1)


class CausalSelfAttention(nn.Module):
    """softmax(q kᵀ / √D) v in each of H heads; a token attends to itself and those before it.

    Vaswani et al. 2017, equation 1 and section 3.2.2. Dropout acts on what is added to the
    residual stream, not on the attention weights: that would rule out fused kernels, and
    made training on a CPU 1.7 times slower.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.qkv = Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out = Linear(config.emb_dim, config.emb_dim)
        self.dropout = Dropout(config.drop_rate)

    def forward(
        self,
        x: Tensor,
        cache: CacheView | None = None,
        mask: Tensor | None = None,
        edit: Edit = unedited,
    ) -> Tensor:
        """(B, T, C) → (B, T, C); with a cache, attends to all S tokens of each sequence.

        A `mask` (B, 1, T, S) says which these are, true or a number to add to their scores.
        """
        B, T, C = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.split(C, dim=-1)
        if cache is not None:
            k, v = cache.write(self.layer, qkv[..., C:])  # (B, S, C)
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H, T or S, D)
            for part in (q, k, v)
        )
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1
        )
        y = edit("heads", self.layer, y.transpose(1, 2).reshape(B, T, C))
        return self.dropout(self.out(y))  # type: ignore[no-any-return]


def within_segments(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's position in its segment, and which tokens it attends to: those before it there.

    Segments are numbered in ascending order. (B, T) → (B, T), (B, 1, T, T) bool
    """
    T = segments.shape[1]
    order = torch.arange(T, device=segments.device)
    begin = torch.searchsorted(segments, segments)  # the first token of the same segment
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return order - begin, same & (order[:, None] >= order)


class FeedForward(nn.Module):
    """Two layers with a GELU between, four times as wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.emb_dim, 4 * config.emb_dim)
        self.gelu = GELU()
        self.down = Linear(4 * config.emb_dim, config.emb_dim)
        self.dropout = Dropout(config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        return self.dropout(self.down(self.gelu(self.up(x))))  # type: ignore[no-any-return]


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each after its norm and added to the residual stream.

    GPT-2 moved the norms to the input of each half ("pre-norm"; section 2.3 of the paper).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norm1 = LayerNorm(config.emb_dim, config.layer_norm_eps)
        self.attention = CausalSelfAttention(config, layer)
        self.norm2 = LayerNorm(config.emb_dim, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cache: CacheView | None = None,
        mask: Tensor | None = None,
        edit: Edit = unedited,
    ) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        x = edit("stream", self.layer, x)
        x = x + edit("attention", self.layer, self.attention(self.norm1(x), cache, mask, edit))
        return x + edit("feed_forward", self.layer, self.feed_forward(self.norm2(x)))


class GPT2(nn.Module):
    """Token and position embeddings, L blocks, a final norm, and a head.

    The head is the token embedding used backwards (tied, as OpenAI's weights are). With
    `checkpointing`, training keeps only what goes into each block, and computes its inside a second
    time when its gradients are due (Chen et al. 2016, arXiv:1604.06174).
    """

    checkpointing = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.final_norm = LayerNorm(config.emb_dim, config.layer_norm_eps)

    def hidden(
        self,
        ids: Tensor,
        cache: CacheView | None = None,
        segments: Tensor | None = None,
        edits: Edits | None = None,
    ) -> Tensor:
        """Run T tokens through the blocks and the final norm. (B, T) → (B, T, C)

        Without a cache they are whole sequences; or several documents each, if `segments` (B, T)
        numbers them in their order. With one they are read at its positions, after the tokens
        that it holds, and added to it. Without segments, `edits` may change what is
        computed on the way. Raises `ValueError` for more tokens than a context holds.
        """
        tokens, context_length = ids.shape[1], self.config.context_length
        if tokens > context_length:
            raise ValueError(f"{tokens} tokens exceed a context of {context_length}")
        mask = None
        if cache is not None:
            positions, mask = cache.positions, cache.mask
        elif segments is not None:
            positions, mask = within_segments(segments)
        else:
            positions = torch.arange(tokens, device=ids.device)
        edit: Edit = unedited
        if edits is not None:
            edit, mask = edits.at(positions), edits.mask(mask, positions)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = self.dropout(x)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, cache, mask, edit, use_reentrant=False)
            else:
                x = block(x, cache, mask, edit)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def head(self, x: Tensor) -> Tensor:
        """Score every vocabulary entry. (…, C) → logits (…, V)"""
        return F.linear(x, self.token_embedding.weight)

    def forward(
        self,
        ids: Tensor,
        cache: CacheView | None = None,
        segments: Tensor | None = None,
        edits: Edits | None = None,
    ) -> Tensor:
        """Logits for the token after each of the T given ones. (B, T) → (B, T, V)"""
        return self.head(self.hidden(ids, cache, segments, edits))

    def init_weights(self, generator: torch.Generator | None = None) -> GPT2:
        """Draw the weights as OpenAI did before training; returns self.

        N(0, 0.02), positions N(0, 0.01), and what is added to the residual stream scaled by
        1/√(2L), there being two additions per layer (GPT-2 paper, section 2.3).
        """
        residual = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                nn.init.constant_(p, 1.0 if name.endswith("scale") else 0.0)
            elif name.startswith("position_embedding"):
                nn.init.normal_(p, std=0.01, generator=generator)
            else:
                added = name.endswith(("attention.out.weight", "feed_forward.down.weight"))
                nn.init.normal_(p, std=residual if added else 0.02, generator=generator)
        return self
