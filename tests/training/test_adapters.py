"""From a model in training to an adapter on disk, for PEFT and for going on."""

from __future__ import annotations

from pathlib import Path

import torch
from adapters import FULL, foreign, peft_logits

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import add_lora, lora_layers
from gpt2cli.training.adapters import attach, from_model
from gpt2cli.weights import adapter, checkpoint
from gpt2cli.weights.merging import Chosen

X = torch.arange(20)[None]


def trained(directory: Path) -> GPT2:
    """A model with updates, and a norm that is trained as a whole."""
    config = LoraConfig(rank=3, targets=("c_attn", "mlp.c_proj"), rslora=True)
    model = add_lora(checkpoint.load(directory), config, torch.Generator().manual_seed(0))
    model.final_norm.requires_grad_(True)
    with torch.no_grad():
        model.final_norm.scale.mul_(1.5)
        for _, layer in lora_layers(model):
            layer.b.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model.eval()


def test_what_was_trained_computes_the_same_in_peft_and_merged(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = trained(tiny_directory)
    adapter.write(from_model(model, base="someone/tiny"), tmp_path, tiny_config)
    with torch.no_grad():
        wanted = model(X)
    found = peft_logits(tiny_directory, tmp_path, X)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    merged = checkpoint.load(tiny_directory, [Chosen(tmp_path)])(X)
    torch.testing.assert_close(merged, wanted, atol=1e-5, rtol=1e-5)


def test_training_goes_on_where_an_adapter_was_written(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = trained(tiny_directory)
    adapter.write(from_model(model, dropout=0.25), tmp_path, tiny_config)
    again = attach(adapter.read(tmp_path, tiny_config), checkpoint.load(tiny_directory)).eval()
    assert torch.equal(again(X), model(X))
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: p for name, p in again.named_parameters() if p.requires_grad}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {layer.dropout.p for _, layer in lora_layers(again)} == {0.25}


def test_a_foreign_adapter_is_trained_on_and_written_as_it_was(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """Ranks and alphas of single matrices included."""
    foreign(tiny_directory, tmp_path / "theirs", FULL)
    read = adapter.read(tmp_path / "theirs", tiny_config)
    found = from_model(attach(read, checkpoint.load(tiny_directory)))
    assert found.updates.keys() == read.updates.keys()
    for name, update in read.updates.items():
        assert (found.updates[name].a == update.a).all()
        assert (found.updates[name].b == update.b).all()
        assert found.updates[name].scale == update.scale
    assert {name: array.tolist() for name, array in found.saved.items()} == {
        name: array.tolist() for name, array in read.saved.items()
    }
