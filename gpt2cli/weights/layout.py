"""The files of a checkpoint, and of an adapter, in the Hugging Face hub's layout, by name."""

from __future__ import annotations

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # where weights are split over several files
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5")


def refusal(where: str, pickled: str) -> str:
    """Why weights that only `pickled`, a file, holds are not read."""
    return (
        f"{where} has only pickled weights ({pickled}), which can run any code when opened; "
        "gpt2cli reads only safetensors, which transformers' save_pretrained writes"
    )
