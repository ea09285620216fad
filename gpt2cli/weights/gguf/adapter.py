"""A LoRA adapter as a GGUF file, which llama.cpp adds to a model that it runs (`--lora`).

It has one alpha for all matrices, and adds alpha / rank · B A to each; where ours are scaled
otherwise, the rest of the factor goes into B.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2cli.errors import WeightsError
from gpt2cli.weights.adapter import Adapter
from gpt2cli.weights.gguf import names
from gpt2cli.weights.gguf.export import writing
from gpt2cli.weights.names import hub_name


def write(adapter: Adapter, path: Path, name: str, weight: float = 1.0) -> None:
    """Write an adapter, `weight` times as strong, as a file that replaces one that is there.

    Raises `WeightsError` if it changes more than matrices, or where writing fails.
    """
    if adapter.saved:
        raise WeightsError(
            f"{name} holds whole parameters ({hub_name(next(iter(adapter.saved)))}), "
            "which a GGUF adapter cannot; merge it into its model"
        )
    gguf = names.package()
    strengths = {n: weight * update.scale * update.rank for n, update in adapter.updates.items()}
    alpha = next(iter(strengths.values()), 0.0) or 1.0
    with writing(path) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_name(name)
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for ours, update in adapter.updates.items():
            theirs = names.gguf_name(ours)
            b = update.b * np.float32(strengths[ours] / alpha)
            writer.add_tensor(f"{theirs}.lora_a", np.ascontiguousarray(update.a, np.float32))
            writer.add_tensor(f"{theirs}.lora_b", np.ascontiguousarray(b, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
