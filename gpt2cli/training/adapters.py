"""Between the LoRA of a model in training and the files of an adapter."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gpt2cli.arrays import NDArray
from gpt2cli.config.lora import LoraConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import lora_layers, wrap
from gpt2cli.weights.adapter import Adapter, LowRank


def from_model(model: GPT2, *, dropout: float = 0.0, base: str = "") -> Adapter:
    """All that is trained of a model with LoRA: the updates, and other parameters as a whole."""
    layers = dict(lora_layers(model))
    updates = {
        name: LowRank(_array(layer.a), _array(layer.b), layer.alpha, layer.rslora)
        for name, layer in layers.items()
    }
    factors = {id(p) for layer in layers.values() for p in (layer.a, layer.b)}
    saved = {
        name: _array(p)
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in factors
    }
    return Adapter(updates, saved, dropout, base)


def attach(adapter: Adapter, model: GPT2, *, dropout: float | None = None) -> GPT2:
    """Freeze a model and give it an adapter to train on; returns it.

    The dropout is the adapter's own unless another is given.
    """
    model.requires_grad_(False)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in adapter.saved.items():
            parameters[name].requires_grad_(True).copy_(_tensor(array))
        for name, update in adapter.updates.items():
            config = LoraConfig(
                update.rank,
                update.alpha,
                adapter.dropout if dropout is None else dropout,
                rslora=update.rslora,
            )
            layer = wrap(model, name, config)
            layer.a.copy_(_tensor(update.a))
            layer.b.copy_(_tensor(update.b))
    return model


def _array(parameter: Tensor) -> NDArray:
    # Memory that NumPy has seen can no longer be freed as sharded models free theirs.
    return parameter.detach().to("cpu", torch.float32, copy=True).numpy()


def _tensor(array: NDArray) -> Tensor:
    return torch.from_numpy(np.array(array))
