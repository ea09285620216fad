"""How weights become decoders: which computes where, and what a full disk costs."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Run, needs_engine

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native, opening
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.errors import DeviceError, WeightsError
from gpt2cli.system import device
from gpt2cli.system.device import Placement
from gpt2cli.weights import checkpoint


@needs_engine
@pytest.mark.parametrize("command", ["generate -n 1 A", "score --text ROMEO:", "repl"])
def test_verbose_says_why_weights_are_quantized_on_every_run(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run
) -> None:
    arguments = (*command.split(), "-m", "bard", "--precision", "int4", "-v")
    cache = tmp_path / "gpt2cli"
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    assert b"could not be kept" not in run_main(*arguments).stderr
    (file,) = cache.iterdir()
    file.write_bytes(b"of other weights")
    monkeypatch.setattr("gpt2cli.decoders.native.quantize.atomic", _full)
    done = run_main(*arguments)
    assert b"the int4 weights could not be kept in" in done.stderr


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "gpt2cli"


@needs_engine
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision_is_mapped_as_it_is_stored_and_else_converted_once(
    precision: str,
    dtype: torch.dtype,
    tiny_directory: Path,
    tiny_config: ModelConfig,
    cache: Path,
    tmp_path: Path,
) -> None:
    placement = Placement("cpu", precision)
    half = checkpoint.load(tiny_directory).to(dtype)
    exact = half.float()
    for name, p in checkpoint.load(tiny_directory).named_parameters():
        if p.dim() == 1 or name == "position_embedding.weight":
            dict(exact.named_parameters())[name].data.copy_(p.data)  # these stay in fp32
    checkpoint.save(half, tmp_path / "half", 0, dtype)
    found = []
    for directory in (tiny_directory, tiny_directory, tmp_path / "half"):
        decoder = opening.open_decoder(directory, placement)
        assert isinstance(decoder, EngineDecoder)
        found.append(decoder.read([Chunk(decoder.open(), 0, [1, 2, 3])]))
    assert np.array_equal(found[0], found[1])
    with torch.inference_mode():
        expected = exact(torch.tensor([[1, 2, 3]]))[:, -1].numpy()
    assert np.abs(found[0] - expected[:, : found[0].shape[1]]).max() < 1e-4
    assert np.abs(found[0] - found[2]).max() < 0.1  # whose vectors have 16 bits too
    assert len(list(cache.iterdir())) == 1  # of the checkpoint in fp32
    assert opening.why_quantized_again(tmp_path / "half", precision) is None


@needs_engine
def test_weights_that_fp16_cannot_hold_are_named(
    tiny_directory: Path, cache: Path, tmp_path: Path
) -> None:
    model = checkpoint.load(tiny_directory)
    model.token_embedding.weight.data[3, 4] = 70_000
    checkpoint.save(model, tmp_path / "large", 0, torch.float32)
    opening.open_decoder(tmp_path / "large", Placement("cpu", "bf16"))
    with pytest.raises(WeightsError, match=r"wte.weight has numbers too large for float16"):
        opening.open_decoder(tmp_path / "large", Placement("cpu", "fp16"))


def test_without_the_engine_half_precision_is_pytorchs(
    tiny_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_load", lambda: "it was not built")
    placement = Placement("cpu", "bf16")
    opening.check_engine(placement)
    assert isinstance(opening.open_decoder(tiny_directory, placement), TorchDecoder)
    monkeypatch.setattr(device, "_has_torch", lambda: False)
    with pytest.raises(DeviceError, match="bf16 needs PyTorch"):
        opening.check_engine(placement)


def _full(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
