"""Adapters of random numbers: PEFT's own, and ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import GPT2LMHeadModel

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.weights.adapter import Adapter, LowRank, write
from gpt2cli.weights.names import parameter_shapes

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"]}
# All that is supported at once; "c_proj" is two matrices of each block.
FULL: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": True,
    "target_modules": ["attn.c_attn", "c_proj", "mlp.c_fc"],
    "rank_pattern": {r"^transformer\.h\.0\.attn\..*": 3, "h.1.mlp.c_fc": 6},
    "alpha_pattern": {"c_fc": 5},
    "modules_to_save": ["ln_f", "ln_1"],
}


def base_model(directory: Path) -> GPT2LMHeadModel:
    """The same weights in transformers."""
    return GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32)


def foreign(directory: Path, out: Path, settings: dict[str, Any] = PLAIN, seed: int = 0) -> Any:
    """A model of PEFT's with an adapter of random numbers, which it has saved to `out`."""
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings)
    model = get_peft_model(base_model(directory), config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    model.save_pretrained(str(out))
    return model


def peft_logits(directory: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """What PEFT computes with an adapter on disk."""
    model = PeftModel.from_pretrained(base_model(directory), adapter).eval()
    with torch.no_grad():
        return model(ids).logits  # type: ignore[no-any-return]


def own(out: Path, config: ModelConfig, seed: int = 0, rank: int = 2) -> Path:
    """An adapter of ours on all matrices, of random numbers that matter."""
    random = np.random.default_rng(seed)
    updates = {}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("blocks.") and len(shape) == 2:
            a = random.standard_normal((rank, shape[0])).astype(np.float32) / 3
            b = random.standard_normal((shape[1], rank)).astype(np.float32) / 3
            updates[name] = LowRank(a, b, alpha=2.0)
    write(Adapter(updates), out, config)
    return out


def change_config(directory: Path, **settings: Any) -> None:
    """Rewrite settings of an adapter's config."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_tensors(directory: Path, change: dict[str, NDArray | None]) -> None:
    """Replace, add or (None) drop tensors of an adapter, by their names without PEFT's prefix."""
    path, prefix = directory / "adapter_model.safetensors", "base_model.model.transformer."
    changed = {prefix + name: array for name, array in change.items()}
    tensors = {**load_file(path), **changed}
    save_file({name: array for name, array in tensors.items() if array is not None}, path)
