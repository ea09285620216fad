"""LoRA adapters as GGUF files: what llama.cpp's formula makes of them is what ours adds."""

from __future__ import annotations

from pathlib import Path

import ggufs
import numpy as np
import pytest
import torch
from adapters import FULL, PLAIN, foreign, own

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import WeightsError
from gpt2cli.weights import adapter as peft_adapter
from gpt2cli.weights import checkpoint
from gpt2cli.weights.gguf import adapter, names
from gpt2cli.weights.merging import Chosen

PATTERNS = {key: value for key, value in FULL.items() if key != "modules_to_save"}


@pytest.mark.parametrize("weight", [1.0, -0.5])
@pytest.mark.parametrize("settings", [PLAIN, PATTERNS])
def test_alpha_over_rank_times_b_a_is_the_change(
    tiny_directory: Path,
    tmp_path: Path,
    tiny_config: ModelConfig,
    settings: dict[str, object],
    weight: float,
) -> None:
    """Also where PEFT scales each matrix in its own way (rslora, patterns)."""
    foreign(tiny_directory, tmp_path / "lora", settings)
    found = peft_adapter.read(tmp_path / "lora", tiny_config)
    adapter.write(found, tmp_path / "lora.gguf", "lora", weight)
    data, tensors = ggufs.metadata(tmp_path / "lora.gguf"), ggufs.tensors(tmp_path / "lora.gguf")
    assert (data["general.type"], data["adapter.type"]) == ("adapter", "lora")
    assert data["general.architecture"] == "gpt2"
    merged = checkpoint.load(tiny_directory, [Chosen(tmp_path / "lora", weight)])
    base = dict(checkpoint.load(tiny_directory).named_parameters())
    changed = 0
    for name, p in merged.named_parameters():
        theirs = names.gguf_name(name)
        if f"{theirs}.lora_a" in tensors:
            a, b = tensors[f"{theirs}.lora_a"], tensors[f"{theirs}.lora_b"]
            change = data["adapter.lora.alpha"] / b.shape[-1] * (b @ a).T
            assert np.allclose(change, (p - base[name]).numpy(), atol=1e-6)
            changed += 1
        else:
            assert torch.equal(p, base[name])
    assert 2 * changed == len(tensors) > 0


def test_an_adapter_with_whole_parameters_is_refused(
    tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    foreign(tiny_directory, tmp_path / "lora", FULL)
    found = peft_adapter.read(tmp_path / "lora", tiny_config)
    with pytest.raises(WeightsError, match=r"holds whole parameters \(.*\), which a GGUF adapter"):
        adapter.write(found, tmp_path / "lora.gguf", "lora")
    assert not (tmp_path / "lora.gguf").exists()


def test_an_adapter_of_nothing_can_be_written(tmp_path: Path, tiny_config: ModelConfig) -> None:
    """An alpha of 0 would mean something else to llama.cpp."""
    found = peft_adapter.read(own(tmp_path / "lora", tiny_config), tiny_config)
    adapter.write(found, tmp_path / "lora.gguf", "lora", weight=0.0)
    assert ggufs.metadata(tmp_path / "lora.gguf")["adapter.lora.alpha"] == 1
    tensors = ggufs.tensors(tmp_path / "lora.gguf")
    assert not tensors["blk.0.ffn_up.weight.lora_b"].any()
