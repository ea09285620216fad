"""LoRA: training a few low-rank updates of a model that is itself left as it is.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). A matrix
W (in, out) becomes W + s · (B A)ᵀ with A (rank, in) and B (out, rank), the orientation in which
PEFT keeps them. B begins as zeros, so that training begins with the model as it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2cli.config.lora import LoraConfig
from gpt2cli.model.gpt2 import GPT2, Linear


class LoRALinear(nn.Module):
    """y = x W + b + s · dropout(x) Aᵀ Bᵀ, in which only A and B are trained.

    The scale s is alpha / rank, or with rslora alpha / √rank (arXiv:2312.03732).
    """

    def __init__(self, base: Linear, config: LoraConfig) -> None:
        super().__init__()
        n_in, n_out = base.weight.shape
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(config.dropout)
        self.a = nn.Parameter(base.weight.new_empty(config.rank, n_in))
        self.b = nn.Parameter(base.weight.new_zeros(n_out, config.rank))
        self.alpha, self.rslora = config.alpha, config.rslora
        self.scale = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)"""
        update = F.linear(F.linear(self.dropout(x), self.a), self.b)
        return self.base(x) + self.scale * update  # type: ignore[no-any-return]

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
