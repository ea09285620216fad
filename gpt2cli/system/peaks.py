"""How fast GPUs could multiply, and what part of that training reaches."""

from __future__ import annotations

from gpt2cli.config.model import ModelConfig
from gpt2cli.system import estimate

# Operations a second in bf16, dense, from NVIDIA's data sheets; the first name that fits counts.
_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def model_flops_utilisation(
    config: ModelConfig, tokens_per_second: float, gpu: str, *, lora: bool = False
) -> float | None:
    """The share of a GPU's peak that training in bf16 uses; None for a GPU that is not known.

    Chowdhery et al. 2022, "PaLM" (arXiv:2204.02311), appendix B. With LoRA there are no gradients
    of the weights, a third of the work.
    """
    peak = next((peak for name, peak in _PEAKS.items() if name in gpu), None)
    if peak is None:
        return None
    work = estimate.training_flops_per_token(config) * (2 / 3 if lora else 1)
    return work * tokens_per_second / peak
