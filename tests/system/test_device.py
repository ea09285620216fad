"""Devices and precisions: chosen without torch where a CPU will do, refused where absent."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gpt2cli.errors import DeviceError
from gpt2cli.system import device
from gpt2cli.system.device import Placement


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "may_have_gpu", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch reports two CUDA GPUs; nothing is run on them."""
    monkeypatch.setattr(device, "may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_runs_in_fp32_unless_told_otherwise() -> None:
    assert device.place() == Placement("cpu", "fp32")
    assert device.place("cpu", "bf16") == Placement("cpu", "bf16")
    for absent in ("cuda", "cuda:1", "mps"):
        with pytest.raises(DeviceError, match=f"no {absent} GPU here"):
            device.place(absent)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_is_preferred_and_runs_in_bf16() -> None:
    assert device.place() == Placement("cuda", "bf16")
    assert device.place("cuda:1", "fp32") == Placement("cuda:1", "fp32")
    assert device.place("cpu") == Placement("cpu", "fp32")
    with pytest.raises(DeviceError, match="the last GPU is cuda:1"):
        device.place("cuda:2")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_without_bf16_runs_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert device.place() == Placement("cuda", "fp32")


@pytest.mark.usefixtures("no_gpu")
def test_float16_on_a_cpu_that_only_emulates_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_has_float16", lambda: False)
    with pytest.raises(DeviceError, match="no fp16 arithmetic"):
        device.probe(Placement("cpu", "fp16"))


@pytest.mark.usefixtures("no_gpu")
def test_a_precision_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(torch, "addmm", missing)
    with pytest.raises(DeviceError, match="cannot compute in bf16"):
        device.probe(Placement("cpu", "bf16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpu", "auto"), "unknown device 'gpu'; use auto, cpu, cuda, cuda:N or mps"),
        (("cuda:x", "auto"), "unknown device 'cuda:x'.*did you mean 'cuda'"),
        (("cpu", "bf61"), "precision must be auto, .* or int4, not 'bf61'.*did you mean 'bf16'"),
        (("cuda", "int8"), "int8 is for a CPU, not for cuda"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        device.place(*arguments)


def test_placing_on_a_cpu_does_not_import_torch() -> None:
    script = (
        "import sys; from gpt2cli.system import device; device.limit_threads(1);"
        "device.place('cpu'); assert 'torch' not in sys.modules;"
        "import torch; assert torch.get_num_threads() == 1"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_without_torch_a_cpu_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "may_have_gpu", lambda: True)
    monkeypatch.setattr(device, "_has_torch", lambda: False)
    assert device.place() == Placement("cpu", "fp32")
    with pytest.raises(DeviceError, match="bf16 needs PyTorch: pip install torch"):
        device.probe(device.place("auto", "bf16"))
