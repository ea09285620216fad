"""Files of tensors: damage is named, and a file is written whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gpt2cli.errors import WeightsError
from gpt2cli.weights import checkpoint
from gpt2cli.weights.safetensors import (
    read_mapped,
    read_metadata,
    read_safetensors,
    write_safetensors,
)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_what_is_written_is_read_in_each_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    path, tensor = tmp_path / "x", torch.tensor([[1.5, -2.0, 3e-4], [0.0, 1e4, -7.0]]).to(dtype)
    write_safetensors({"a": tensor, "a.mask": torch.ones(2)}, path, {"step": "3"})
    read, metadata = read_safetensors(path)
    assert torch.equal(read["a"], tensor)
    assert metadata == read_metadata(path) == {"step": "3"}
    mapped = read_mapped(path, ignored=(".mask",))
    assert list(mapped) == ["a"]
    assert mapped["a"].shape == (2, 3)
    assert mapped["a"].to_numpy().tolist() == tensor.float().tolist()
    assert torch.equal(mapped["a"].to_torch("cpu", dtype), tensor)


def test_a_tensor_of_whole_numbers_is_refused_by_name(tmp_path: Path) -> None:
    write_safetensors({"ids": torch.arange(3)}, tmp_path / "x", {})
    with pytest.raises(WeightsError, match="x: ids is stored as I64, which is no floating point"):
        read_mapped(tmp_path / "x")


@pytest.mark.parametrize("keep", [0, 4, 100, 2000])
def test_a_truncated_file_is_called_damaged(directory: Path, keep: int) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        checkpoint.load(directory)


def test_a_corrupt_header_is_called_damaged(directory: Path) -> None:
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        checkpoint.load(directory)


def test_saving_is_atomic(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (directory / "model.safetensors").read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(WeightsError, match=r"cannot write .*disk full"):
        checkpoint.save(checkpoint.load(directory), directory, 0, torch.float32)
    assert (directory / "model.safetensors").read_bytes() == before
    assert not list(directory.glob(".*.tmp"))


def test_saved_files_are_as_readable_as_others(directory: Path) -> None:
    (directory / "plain").touch()
    assert (directory / "model.safetensors").stat().st_mode == (directory / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform != "linux", reason="says in /proc what is in memory")
def test_pages_that_are_released_leave_the_memory_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_safetensors({"a": torch.ones(4_000_000)}, path, {})
    tensor = read_mapped(path)["a"]
    assert tensor.to_numpy().sum() == 4_000_000
    assert resident(path) > 15_000
    tensor.release()
    assert resident(path) < 1_000
    assert tensor.to_numpy()[-1] == 1


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that this process has in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[first:] if line.startswith("Rss:"))
