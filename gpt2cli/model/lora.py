"""LoRA: training a few low-rank updates of a model that is itself left as it is.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). A matrix
W (in, out) becomes W + s · (B A)ᵀ with A (rank, in) and B (out, rank), the orientation in which
PEFT keeps them. B begins as zeros, so that training begins with the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2cli.config.lora import LoraConfig
from gpt2cli.model.dropout import Dropout, places
from gpt2cli.model.gpt2 import GPT2, Linear


class _Updated(torch.autograd.Function):
    """What `LoRALinear` computes, with no array of the output's or the input's size in between.

    Such arrays, of the update, of its scaled copy and of what dropout leaves, took a fifth of the
    time of a step in bf16, and a third more memory than is kept now.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """(N, in), (in, out), (out,), (rank, in), (out, rank) → (N, out)"""
        x, weight, bias, a, b = _autocast(x, weight, bias, a, b)  # type: ignore[assignment]
        scale /= 1 - dropout  # of what is kept
        cut = places(x, dropout) if dropout else None
        low = _without(x, cut) @ a.T * scale  # (N, rank)
        y = x @ weight if bias is None else torch.addmm(bias, x, weight)
        ctx.save_for_backward(x, weight, a, b, low, cut)
        ctx.scale = scale
        return y.addmm_(low, b.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(N, out) → the gradients of x, a and b"""
        x, weight, a, b, low, cut = ctx.saved_tensors
        of_low = gradient @ b * ctx.scale
        of_a = of_low.T @ _without(x, cut)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight.T
            if cut is None:
                of_x.addmm_(of_low, a)
            else:
                of_x += (of_low @ a).masked_fill_(cut, 0)
        return of_x, None, None, of_a, gradient.T @ low, None, None


def _without(x: Tensor, cut: Tensor | None) -> Tensor:
    return x if cut is None else x.masked_fill(cut, 0)


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """The arrays in the type that a product of x has, under autocast or without."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return tuple(None if t is None else t.to(dtype) for t in (x, *others))


class LoRALinear(nn.Module):
    """y = x W + b + s · dropout(x) Aᵀ Bᵀ, in which only A and B are trained.

    The scale s is alpha / rank, or with rslora alpha / √rank (arXiv:2312.03732).
    """

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__()
        n_in, n_out = base.weight.shape
        self.base = base.requires_grad_(False)
        self.dropout = Dropout(config.dropout)
        self.a = nn.Parameter(base.weight.new_empty(config.rank, n_in))
        self.b = nn.Parameter(base.weight.new_zeros(n_out, config.rank))
        self.alpha, self.rslora = config.alpha, config.rslora
        self.scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)"""
        base, dropout = self.base, self.dropout.p if self.training else 0.0
        y: Tensor = _Updated.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2), base.weight, base.bias, self.a, self.b, self.scale, dropout
        )
        return y.view(*x.shape[:-1], -1)

    def merged(self) -> Tensor:
        """The one matrix that computes the same. → (in, out)"""
        return self.base.weight + self.scale * (self.b @ self.a).T


def add_lora(model: GPT2, config: LoraConfig, generator: torch.Generator | None = None) -> GPT2:
    """Freeze a model and give the chosen matrices of all blocks updates; returns it."""
    model.requires_grad_(False)
    for i in range(len(model.blocks)):
        for name in config.matrices:
            wrap(model, f"blocks.{i}.{name}.weight", config, generator)
    return model


def wrap(
    model: GPT2, name: str, config: LoraConfig, generator: torch.Generator | None = None
) -> LoRALinear:
    """Give one matrix, by the name of its parameter, an update; returns what is in its place."""
    path, _, attribute = name.removesuffix(".weight").rpartition(".")
    parent = model.get_submodule(path)
    layer = LoRALinear(getattr(parent, attribute), config).train(model.training)
    nn.init.kaiming_uniform_(layer.a, a=math.sqrt(5), generator=generator)
    setattr(parent, attribute, layer)
    return layer


def keep_frozen_as(model: GPT2, dtype: torch.dtype) -> None:
    """Keep the matrices under updates in the type of their products: half the memory in bf16."""
    for _, layer in lora_layers(model):
        layer.base.weight.data = layer.base.weight.data.to(dtype)


def lora_layers(model: GPT2) -> Iterator[tuple[str, LoRALinear]]:
    """The layers with updates, by the names of the parameters that these change."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield f"{name}.weight", module


def merged_state(model: GPT2) -> dict[str, Tensor]:
    """The parameters of the plain `GPT2` that computes the same, by name."""
    state = {name: p.detach() for name, p in model.named_parameters()}
    for name, layer in lora_layers(model):
        path = name.removesuffix("weight")
        del state[f"{path}a"], state[f"{path}b"], state[f"{path}base.weight"]
        if layer.base.bias is not None:
            state[f"{path}bias"] = state.pop(f"{path}base.bias")
        state[name] = layer.merged().detach()
    return state
