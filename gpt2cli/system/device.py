"""Which device and precision this machine should use, checked before weights are loaded.

torch is imported only where a GPU may be present or half precision is asked for: a CPU
needs it for neither answer.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import DeviceError, did_you_mean
from gpt2cli.system.precision import HALVES, PRECISIONS, QUANTIZED, parse, torch_name

_BLAS = "OPENBLAS_NUM_THREADS"
_OTHER_NAMES = {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model runs, in torch's words (cuda:0), and a key of `precision.PRECISIONS`.

    With `reference` the reference model in PyTorch runs there, even where an engine is faster.
    """

    device: str
    precision: str
    reference: bool = False

    @property
    def cache_precision(self) -> str:
        """That of the KV cache: on a CPU the engine keeps it in fp32 if weights have 16 bits."""
        return "fp32" if self.device == "cpu" and self.precision in HALVES else self.precision


def check_device(device: str) -> None:
    """Raise `DeviceError` for a name that no machine knows."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        likely = _OTHER_NAMES.get(device.lower(), device)
        hint = did_you_mean(likely, ("auto", "cpu", "cuda", "mps"))
        raise DeviceError(f"unknown device {device!r}; use auto, cpu, cuda, cuda:N or mps{hint}")


def limit_threads(threads: int) -> None:
    """Make the engine, NumPy's BLAS and torch use n CPU threads, before NumPy is imported."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["VECLIB_MAXIMUM_THREADS"] = str(threads)
    if "torch" in sys.modules:  # it has read the environment already
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy, if it is imported in the block, make no threads for its BLAS.

    Those of OpenBLAS spin for some time, even if nothing is multiplied.
    """
    given = os.environ.get(_BLAS)
    os.environ[_BLAS] = "1"
    try:
        yield
    finally:
        os.environ.pop(_BLAS)
        if given is not None:
            os.environ[_BLAS] = given


def place(device: str = "auto", precision: str = "auto") -> Placement:
    """Choose: a CUDA GPU, else Apple's, else the CPU; bf16 on GPUs that have it, else fp32.

    Quantized weights are for a CPU, and half precision there is for who computes to `probe`, as it
    may not be PyTorch. Raises `DeviceError` for a device or precision that this
    machine does not have.
    """
    check_device(device)
    wanted = None if precision == "auto" else parse(precision, ("auto", *PRECISIONS))
    if wanted in QUANTIZED:
        if device not in ("auto", "cpu"):
            raise DeviceError(
                f"precision {wanted} is for a CPU, not for {device}; add device cpu, or leave "
                "one of them out",
                "precision",
                "device",
            )
        return Placement("cpu", wanted)
    chosen = "cpu" if device == "cpu" or not may_have_gpu() else _ask_torch(device)
    if chosen == "cpu" and device not in ("cpu", "auto"):
        raise DeviceError(f"there is no {device} GPU here; choose device cpu or auto", "device")
    if wanted is None:
        return Placement(chosen, "bf16" if _has_bf16(chosen) else "fp32")
    placement = Placement(chosen, wanted)
    if wanted != "fp32" and chosen != "cpu":
        probe(placement)
    return placement


def may_have_gpu() -> bool:
    """Whether a GPU is possible, so that torch must be asked; False only if there is none."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    # The driver's device files on Linux and in WSL; elsewhere its tool.
    files = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return any(map(os.path.exists, files)) or shutil.which("nvidia-smi") is not None


def _ask_torch(name: str) -> str:
    """The device that `name` means here; "cpu" where torch finds no such GPU, or is missing."""
    if not _has_torch():
        return "cpu"
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    if name == "mps":
        return "mps" if mps else "cpu"
    if cuda and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise DeviceError(f"there is no {name} here; the last GPU is cuda:{last}")
    return name if cuda else "cpu"


def _has_torch() -> bool:
    """Whether PyTorch is installed; an image for servers on a CPU can do without."""
    return "torch" in sys.modules or find_spec("torch") is not None


def _has_bf16(device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    import torch

    return bool(torch.cuda.is_bf16_supported())


def probe(placement: Placement) -> None:
    """Run a toy model in PyTorch: some builds lack half-precision kernels for some devices.

    Raises `DeviceError` if that fails, or PyTorch is not there.
    """
    if not _has_torch():
        raise DeviceError(
            f"precision {placement.precision} needs PyTorch: pip install torch", "precision"
        )
    import torch

    if placement == Placement("cpu", "fp16") and not _cpu_has_float16():
        raise DeviceError(
            "this CPU has no fp16 arithmetic, only slow emulation; "
            "use precision fp32, or bf16 for half the memory",
            "precision",
        )

    from gpt2cli.model.gpt2 import GPT2

    config = ModelConfig(vocab_size=8, context_length=4, emb_dim=8, n_heads=2, n_layers=1)
    dtype = getattr(torch, torch_name(placement.precision))
    try:
        model = GPT2(config).init_weights().eval().to(placement.device, dtype)
        model(torch.zeros(1, 2, dtype=torch.long, device=placement.device))
    except (RuntimeError, TypeError):
        raise DeviceError(
            f"{placement.device} cannot compute in {placement.precision} here; "
            "use precision fp32 or auto",
            "precision",
        ) from None


def _cpu_has_float16() -> bool:
    """Whether products run in hardware: on all 64-bit Arm, on x86 with AVX-512 FP16."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
