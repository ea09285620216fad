"""Which device and precision this machine should use, checked before weights are loaded.

torch is imported only where the machine is asked, so that names can be checked at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpt2cli.config import ModelConfig, did_you_mean
from gpt2cli.errors import DeviceError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs and in which precision."""

    device: torch.device
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """As it is written on the command line: float32, bfloat16, float16."""
        return str(self.dtype).removeprefix("torch.")


def check_names(device: str, dtype: str) -> None:
    """Refuse names that no machine knows. Raises `DeviceError`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        hint = did_you_mean(device, ["auto", "cpu", "cuda", "mps"])
        raise DeviceError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:N or mps{hint}")
    if dtype not in ("auto", *DTYPES):
        hint = did_you_mean(dtype, [*DTYPES])
        raise DeviceError(f"unknown dtype {dtype!r}; use auto, {', '.join(DTYPES)}{hint}")


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Choose: a CUDA GPU, else Apple's, else the CPU; bf16 on GPUs that have it, else fp32.

    Raises `DeviceError` for a device or precision that this machine does not have.
    """
    import torch

    check_names(device, dtype)
    chosen = _device(device)
    if dtype != "auto":
        placement = Placement(chosen, getattr(torch, dtype))
        _probe(placement)
        return placement
    fast = chosen.type == "cuda" and torch.cuda.is_bf16_supported()
    return Placement(chosen, torch.bfloat16 if fast else torch.float32)


def _device(name: str) -> torch.device:
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not cuda:
        raise DeviceError("no CUDA GPU can be used here; choose --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise DeviceError(f"there is no {name} here; the last GPU is cuda:{last}")
    if device.type == "mps" and not mps:
        raise DeviceError("no Apple GPU can be used here; choose --device cpu or auto")
    return device


def _probe(placement: Placement) -> None:
    """Run a toy model: some builds lack half-precision kernels for some devices."""
    import torch

    from gpt2cli.model import GPT2

    config = ModelConfig(vocab_size=8, context_length=4, emb_dim=8, n_heads=2, n_layers=1)
    try:
        model = GPT2(config).init_weights().eval().to(placement.device, placement.dtype)
        model(torch.zeros(1, 2, dtype=torch.long, device=placement.device))
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"{placement.device} cannot compute in {placement.dtype_name} here; "
            "use --dtype float32 or auto"
        ) from None
