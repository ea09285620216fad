"""Adapters in a model's weights: the sum, its parts, and how one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import FULL, foreign, own
from helpers import random_model

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.weights import adapter, checkpoint
from gpt2cli.weights.merging import Chosen, choose

QKV = "blocks.0.attention.qkv.weight"


def weight(directory: Path, *adapters: Chosen, name: str = QKV) -> np.ndarray:
    return checkpoint.read(directory, adapters)[1][name].to_numpy()


def test_two_adapters_add_up_each_with_its_weight(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    one = Chosen(own(tmp_path / "one", tiny_config, seed=1), 0.5)
    two = Chosen(own(tmp_path / "two", tiny_config, seed=2, rank=3), -2.0)
    wanted = weight(tiny_directory).astype(np.float64)
    for chosen in (one, two):
        update = adapter.read(chosen.directory, tiny_config).updates[QKV]
        product = update.b.astype(np.float64) @ update.a.astype(np.float64)
        wanted += chosen.weight * update.scale * product.T
    np.testing.assert_allclose(weight(tiny_directory, one, two), wanted, atol=1e-6)


def test_a_weight_of_zero_is_no_adapter_at_all(tiny_directory: Path, tmp_path: Path) -> None:
    foreign(tiny_directory, tmp_path, FULL)
    for name in checkpoint.read(tiny_directory)[1]:
        found = weight(tiny_directory, Chosen(tmp_path, 0.0), name=name)
        assert np.array_equal(found, weight(tiny_directory, name=name)), name


def test_whole_parameters_are_blended(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    foreign(tiny_directory, tmp_path, FULL)
    saved = adapter.read(tmp_path, tiny_config).saved["final_norm.scale"]
    own_scale = weight(tiny_directory, name="final_norm.scale")
    found = weight(tiny_directory, Chosen(tmp_path, 0.25), name="final_norm.scale")
    np.testing.assert_allclose(found, 0.75 * own_scale + 0.25 * saved, rtol=1e-6)
    assert not np.allclose(saved, own_scale)


def test_what_no_adapter_changes_stays_in_its_file(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    _, tensors = checkpoint.read(tiny_directory, [Chosen(own(tmp_path, tiny_config))])
    for name, tensor in tensors.items():
        is_changed = name.startswith("blocks.") and len(tensor.shape) == 2
        assert np.shares_memory(tensor.to_numpy(), tensor.bits) != is_changed, name


def test_sums_are_rounded_once(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """Half precision would lose what an adapter adds to a weight bit by bit."""
    base, model = tmp_path / "base", random_model(tiny_config)
    checkpoint.save(model, base, 0, torch.bfloat16)
    adapters = [Chosen(own(tmp_path / "a", tiny_config), 0.01)] * 3
    found = checkpoint.read(base, adapters)[1][QKV].to_torch("cpu", torch.bfloat16)
    exact = torch.from_numpy(weight(base, *adapters))
    assert torch.equal(found, exact.bfloat16())
    assert found.dtype == torch.bfloat16


def test_an_adapter_for_another_model_is_refused(
    tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    wide = ModelConfig(300, context_length=32, emb_dim=48, n_heads=3, n_layers=2)
    with pytest.raises(WeightsError, match="another size"):
        checkpoint.read(tiny_directory, [Chosen(own(tmp_path, wide))])


def test_a_choice_is_a_directory_and_perhaps_its_weight(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    plain, odd = own(tmp_path / "a", tiny_config), own(tmp_path / "a=0.5", tiny_config)
    assert choose(plain) == choose(str(plain)) == Chosen(plain, 1.0)
    assert choose(f"{plain}=-2e-1") == Chosen(plain, -0.2)
    assert choose(str(odd)) == Chosen(odd, 1.0)
    assert choose(f"{odd}=3") == Chosen(odd, 3.0)
    assert [str(choose(text)) for text in (plain, f"{plain}=0.25")] == [
        str(plain),
        f"{plain}=0.25",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "there is none named .*absent"),
        ("absent=0.5", "there is none named .*absent$"),
        ("a=much", "or DIR=WEIGHT such as tuned=0.5, not .*a=much"),
        ("a=nan", "or DIR=WEIGHT"),
        ("a=inf", "or DIR=WEIGHT"),
        ("a=", "or DIR=WEIGHT"),
    ],
)
def test_a_choice_of_nothing_says_so(
    tiny_config: ModelConfig, tmp_path: Path, name: str, message: str
) -> None:
    own(tmp_path / "a", tiny_config)
    with pytest.raises(UsageError, match=message):
        choose(tmp_path / name)
