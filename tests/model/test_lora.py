"""LoRA on our model: what is trained, what is computed, and PEFT's training beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import FULL, PLAIN, base_model, foreign
from helpers import random_model
from peft import PeftModel

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError
from gpt2cli.model.gpt2 import GPT2, Linear
from gpt2cli.model.lora import (
    LoRALinear,
    add_lora,
    keep_frozen_as,
    lora_layers,
    merged_state,
)
from gpt2cli.training.adapters import attach
from gpt2cli.weights import adapter, checkpoint

X = torch.arange(24).reshape(2, 12)
PLAIN_LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.0)


def with_updates(config: ModelConfig, settings: LoraConfig) -> GPT2:
    """A model whose updates are not the zeros that they begin as."""
    model = add_lora(random_model(config), settings, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.b.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_it_begins_as_the_model_that_it_was(tiny_config: ModelConfig) -> None:
    model = add_lora(random_model(tiny_config), LoraConfig())
    assert torch.equal(model(X), random_model(tiny_config)(X))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_merged_model_computes_the_same(rslora: bool, qkv_bias: bool) -> None:
    config = ModelConfig(300, 32, emb_dim=24, n_heads=3, n_layers=2, qkv_bias=qkv_bias)
    model = with_updates(config, LoraConfig(rank=3, dropout=0.5, rslora=rslora)).double().eval()
    merged = checkpoint.assemble(config, merged_state(model))
    torch.testing.assert_close(merged(X), model(X), atol=1e-10, rtol=0)
    assert (merged(X) - random_model(config).double()(X)).abs().max() > 0.1


def test_only_updates_are_trained(tiny_config: ModelConfig) -> None:
    model = with_updates(tiny_config, PLAIN_LORA)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    widths = [(24, 72), (24, 24), (24, 96), (96, 24)]
    assert sum(p.numel() for p in trained) == 2 * sum(3 * (i + o) for i, o in widths)
    model(X).square().mean().backward()
    torch.optim.SGD(trained, lr=1.0).step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != name.endswith((".a", ".b")), name


def test_dropout_acts_on_the_update_alone(tiny_config: ModelConfig) -> None:
    config, settings = replace(tiny_config, drop_rate=0.0), LoraConfig(dropout=0.9)
    model = add_lora(random_model(config), settings).train()
    assert torch.equal(model(X), model(X))  # updates of zero
    model = with_updates(config, settings)
    assert torch.equal(model(X), model(X))  # for inference, as it was before
    model.train()
    assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_finite_differences(dropout: float, bias: bool) -> None:
    torch.manual_seed(0)
    layer = LoRALinear(Linear(6, 5, bias), LoraConfig(rank=2, dropout=dropout)).double()
    torch.nn.init.normal_(layer.base.weight)
    torch.nn.init.normal_(layer.a)
    torch.nn.init.normal_(layer.b)
    x = torch.randn(2, 3, 6, dtype=torch.double, requires_grad=True)

    def computed(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)  # of dropout
        return layer(x)

    assert torch.autograd.gradcheck(computed, (x, layer.a, layer.b))


def test_in_bf16_the_frozen_matrices_take_half_and_learn_the_same(tiny_config: ModelConfig) -> None:
    gradients = []
    for kept in (torch.float32, torch.bfloat16):
        model = with_updates(tiny_config, LoraConfig(dropout=0.0))
        keep_frozen_as(model, kept)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(X).float().square().mean()
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        frozen = [layer.base.weight.dtype for _, layer in lora_layers(model)]
        assert set(frozen) == {kept}
        assert model.eval()(X).dtype == torch.float32
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("targets", "matrices"),
    [
        (("c_attn",), ("attention.qkv",)),
        (("c_proj",), ("attention.out", "feed_forward.down")),
        (("mlp.c_proj", "qkv"), ("attention.qkv", "feed_forward.down")),
        (("feed_forward.up", "c_fc"), ("feed_forward.up",)),
    ],
)
def test_targets_are_named_as_openai_or_we_do(
    tiny_config: ModelConfig, targets: tuple[str, ...], matrices: tuple[str, ...]
) -> None:
    model = add_lora(random_model(tiny_config), LoraConfig(targets=targets))
    wanted = {f"blocks.{i}.{name}.weight" for i in range(2) for name in matrices}
    assert {name for name, _ in lora_layers(model)} == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": -1.0}, "alpha must be above 0"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"targets": ()}, "targets must be at least one matrix"),
        ({"targets": ("wte",)}, "targets has 'wte', which is none of attn.c_attn"),
        ({"targets": ("attn.c_atn",)}, "did you mean 'attn.c_attn'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**settings)


def test_the_same_seed_draws_the_same_updates(tiny_config: ModelConfig) -> None:
    models = [
        add_lora(random_model(tiny_config), PLAIN_LORA, torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]
    first, second, third = ([layer.a for _, layer in lora_layers(model)] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    bound = first[0].shape[1] ** -0.5  # Kaiming's for a = √5
    assert 0.8 * bound < first[0].abs().max() <= bound


def losses(model: torch.nn.Module, logits: Any, steps: int = 20) -> list[float]:
    """The losses of some steps of AdamW."""
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(3))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, found = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(steps):
        loss = F.cross_entropy(logits(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("settings", [PLAIN, FULL])
def test_training_loses_what_pefts_does(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    foreign(tiny_directory, tmp_path, settings)
    theirs = PeftModel.from_pretrained(base_model(tiny_directory), tmp_path, is_trainable=True)
    ours = attach(adapter.read(tmp_path, tiny_config), checkpoint.load(tiny_directory))
    wanted = losses(theirs.eval(), lambda ids: theirs(ids).logits)
    found = losses(ours, ours)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found[-1] < found[0] - 0.5
