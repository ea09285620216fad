"""Quantized weights on disk: made once, and never used when they may be wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import needs_engine, random_model
from safetensors import safe_open

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.native import quantize
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.weights import checkpoint
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors

pytestmark = needs_engine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, two levels deep: the folder is made when it is needed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "a" / "b"))
    return tmp_path / "a" / "b" / "gpt2cli"


@pytest.fixture
def directory(tmp_path: Path, tiny_directory: Path) -> Path:
    return Path(shutil.copytree(tiny_directory, tmp_path / "model"))


def open_coded(directory: Path, precision: str = "int8") -> tuple[dict[str, Any], list[int]]:
    """The codes, and what was reported of coding them: nothing if they came from the file."""
    known = quantize.identity(directory)
    config, tensors = checkpoint.read(directory)
    reports: list[int] = []

    def report(_what: str, done: int, _total: int) -> None:
        reports.append(done)

    codes = quantize.open_coded(directory, known, config, tensors, precision, report)
    return codes, reports


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def only_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_codes_are_made_once_and_are_those_made_in_memory(directory: Path, precision: str) -> None:
    config, tensors = checkpoint.read(directory)
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    first, reports = open_coded(directory, precision)
    assert same(first, quantize.encode(config, weights, precision))
    assert reports[-1] == sum(codes.nbytes for codes in first.values())
    again, reports = open_coded(directory, precision)
    assert same(first, again)
    assert not reports


def bf16(data: Any) -> Any:
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def test_int8_codes_are_the_weights_divided_by_the_scale_of_their_group(directory: Path) -> None:
    """By hand, from the layout that quantize.h documents: 16 outputs, 64 inputs, bf16 scales."""
    _, tensors = checkpoint.read(directory)
    name = "blocks.1.feed_forward.down.weight"
    weight = tensors[name].to_numpy()  # (96, 24): one group and a half, and half of a second block
    codes = open_coded(directory)[0][name]
    quarters = codes[: 2 * 32 * 16 * 4].reshape(2, 32, 16, 4)  # (block, in / 4, out, in of 4)
    whole = quarters.transpose(1, 3, 0, 2).reshape(128, 32).astype(int) - 128
    scales = bf16(codes[2 * 32 * 64 :][: 2 * 2 * 16 * 2]).reshape(2, 2, 16)
    scales = scales.transpose(1, 0, 2).reshape(2, 1, 32)
    restored = (whole.reshape(2, 64, 32) * scales).reshape(128, 32)
    assert np.all(restored[96:] == 0)
    assert np.all(restored[:, 24:] == 0)
    assert np.abs(whole).max() == 127
    error = np.abs(restored[:96, :24] - weight)
    assert np.all(error <= 0.5001 * np.repeat(scales[:, 0], 64, axis=0)[:96, :24])


def test_int4_codes_times_the_factor_of_their_half_are_the_weights(directory: Path) -> None:
    """By hand: two inputs a byte, 32 apart, and a small whole number for each half of a group."""
    _, tensors = checkpoint.read(directory)
    name = "blocks.1.feed_forward.down.weight"
    weight = tensors[name].to_numpy()  # (96, 24)
    codes = open_coded(directory, "int4")[0][name]
    both = codes[: 2 * 2 * 8 * 16 * 4].reshape(
        2, 2, 8, 16, 4
    )  # (block, group, in / 4, out, in of 4)
    halves = np.stack([both & 15, both >> 4], axis=2).astype(int) - 8
    whole = halves.transpose(1, 2, 3, 5, 0, 4).reshape(4, 32, 32)  # (half of a group, in, out)
    rest = codes[both.size :][: 2 * 2 * 64].reshape(2, 2, 64)
    scales = bf16(np.ascontiguousarray(rest[..., :32])).reshape(2, 2, 1, 16)
    factors = rest[..., 32:].copy().view(np.int8).reshape(2, 2, 2, 16).astype(int)
    assert np.abs(factors).max() == 15
    steps = (scales * factors).transpose(1, 2, 0, 3).reshape(4, 1, 32)
    restored = (whole * steps).reshape(128, 32)
    assert np.all(restored[96:] == 0)
    assert np.all(restored[:, 24:] == 0)
    # A step of half of which is the most that an unclipped code is off.
    error = np.abs(restored[:96, :24] - weight).reshape(3, 32, 24)
    clipped = (whole == -8) | (whole == 7)
    assert np.all((error <= 0.5001 * np.abs(steps[:3, :, :24])) | clipped[:3, :, :24])
    assert np.sqrt(np.square(error).mean() / np.square(weight).mean()) < 0.1


def test_the_file_is_a_safetensors_file(directory: Path, cache: Path) -> None:
    codes, _ = open_coded(directory)
    with safe_open(only_file(cache), framework="np") as opened:
        assert same({name: opened.get_tensor(name) for name in codes}, codes)


@pytest.mark.parametrize(
    "damage", ["one bit", "a highest bit", "the end", "the header", "everything"]
)
def test_a_damaged_file_is_made_again(directory: Path, cache: Path, damage: str) -> None:
    codes, _ = open_coded(directory)
    codes = {name: array.copy() for name, array in codes.items()}
    path = only_file(cache)
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[-5] ^= 1
    elif damage == "a highest bit":  # of a word in the second page
        data[8 + int.from_bytes(data[:8], "little") + 4096 + 7] ^= 128
    elif damage == "the header":
        data[20] ^= 1
    path.write_bytes({"the end": data[:-1], "everything": b""}.get(damage, data))
    again, reports = open_coded(directory)
    assert same(codes, again)
    assert reports
    assert not open_coded(directory)[1]


def test_other_weights_in_the_same_place_are_coded_anew(
    directory: Path, tiny_config: ModelConfig, cache: Path
) -> None:
    first = {name: array.copy() for name, array in open_coded(directory)[0].items()}
    checkpoint.save(random_model(tiny_config, seed=1), directory, 0, torch.float32)
    second, reports = open_coded(directory)
    assert reports
    assert not same(first, second)
    only_file(cache)


def test_a_disk_that_cannot_be_written_costs_only_time(directory: Path, cache: Path) -> None:
    expected, _ = open_coded(directory)
    expected = {name: array.copy() for name, array in expected.items()}
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    codes, reports = open_coded(directory)
    assert same(codes, expected)
    assert reports


def test_half_precision_weights_are_coded_as_well(tmp_path: Path, tiny_config: ModelConfig) -> None:
    checkpoint.save(random_model(tiny_config), tmp_path / "half", 0, torch.bfloat16)
    config, tensors = checkpoint.read(tmp_path / "half")
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    assert same(open_coded(tmp_path / "half")[0], quantize.encode(config, weights, "int8"))


def test_pruning_removes_what_belongs_to_no_checkpoint(directory: Path, cache: Path) -> None:
    kept = Path(shutil.copytree(directory, directory.parent / "kept"))
    open_coded(kept)
    open_coded(directory, "int4")
    only = quantize.cache_path(kept, "int8")
    (other,) = set(cache.iterdir()) - {only}
    size = other.stat().st_size
    assert quantize.prune() == 0
    shutil.rmtree(directory)
    stray = cache / "stray.safetensors"
    stray.write_bytes(b"\xff" * 20)
    assert quantize.prune() == size
    assert set(cache.iterdir()) == {only, stray}


def as_shards(model: GPT2, directory: Path) -> None:
    """The same checkpoint in two files and an index."""
    checkpoint.save(model, directory, 0, torch.float32)
    tensors, _ = read_safetensors(directory / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for i, part in enumerate((names[:9], names[9:]), start=1):
        file = f"model-{i:05}-of-00002.safetensors"
        write_safetensors({n: tensors[n] for n in part}, directory / file, {})
        index |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (directory / "model.safetensors").unlink()


def test_every_shard_counts(directory: Path, tiny_config: ModelConfig) -> None:
    as_shards(random_model(tiny_config), directory)
    first = {name: array.copy() for name, array in open_coded(directory)[0].items()}
    kept = (directory / "model-00001-of-00002.safetensors").read_bytes()
    stat = (directory / "model-00001-of-00002.safetensors").stat()
    as_shards(random_model(tiny_config, seed=1), directory)
    (directory / "model-00001-of-00002.safetensors").write_bytes(kept)
    os.utime(
        directory / "model-00001-of-00002.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns)
    )
    second, reports = open_coded(directory)
    assert reports
    assert not same(first, second)


def test_other_bytes_of_the_same_size_and_time_are_noticed(
    directory: Path, tiny_config: ModelConfig
) -> None:
    weights = directory / "model.safetensors"
    stat = weights.stat()
    open_coded(directory)
    checkpoint.save(random_model(tiny_config, seed=1), directory, 0, torch.float32)
    assert weights.stat().st_size == stat.st_size
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_coded(directory)[1]


def test_weights_that_are_replaced_meanwhile_leave_no_file(
    directory: Path, tiny_config: ModelConfig, cache: Path
) -> None:
    known = quantize.identity(directory)
    config, tensors = checkpoint.read(directory)
    wanted = quantize.encode(config, {n: t.to_numpy() for n, t in tensors.items()}, "int8")

    def replace(_what: str, done: int, total: int) -> None:
        if done == total:
            checkpoint.save(random_model(tiny_config, seed=1), directory, 0, torch.float32)

    codes = quantize.open_coded(directory, known, config, tensors, "int8", replace)
    assert same(codes, wanted)
    assert list(cache.iterdir()) == []
    assert not same(open_coded(directory)[0], wanted)


def test_codes_of_weights_replaced_since_are_not_mixed_with_new_ones(
    directory: Path, tiny_config: ModelConfig
) -> None:
    open_coded(directory)
    known = quantize.identity(directory)
    checkpoint.save(random_model(tiny_config, seed=1), directory, 0, torch.float32)
    config, tensors = checkpoint.read(directory)
    codes = quantize.open_coded(directory, known, config, tensors, "int8")
    wanted = quantize.encode(config, {n: t.to_numpy() for n, t in tensors.items()}, "int8")
    assert same(codes, wanted)


def test_pages_that_have_changed_places_are_noticed(directory: Path, cache: Path) -> None:
    open_coded(directory)
    path = only_file(cache)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    first, second = data[start : start + 4096], data[start + 4096 : start + 8192]
    assert first != second
    path.write_bytes(data[:start] + second + first + data[start + 8192 :])
    assert open_coded(directory)[1]


def test_a_fifo_in_the_place_of_the_file_is_replaced(directory: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    os.mkfifo(quantize.cache_path(directory, "int8"))
    assert open_coded(directory)[1]
    assert only_file(cache).is_file()
    assert not open_coded(directory)[1]


def test_pruning_leaves_a_fifo_alone(directory: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    os.mkfifo(quantize.cache_path(directory, "int8"))
    assert quantize.prune() == 0


def test_revisions_that_share_a_shard_have_files_of_their_own(
    directory: Path, tiny_config: ModelConfig
) -> None:
    as_shards(random_model(tiny_config), directory)
    other = Path(shutil.copytree(directory, directory.parent / "other"))
    shared = "model-00001-of-00002.safetensors"
    (other / shared).unlink()
    (other / shared).symlink_to(directory / shared)
    open_coded(directory), open_coded(other)
    assert not open_coded(directory)[1]
    assert not open_coded(other)[1]


def test_what_a_killed_process_left_is_removed(directory: Path, cache: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    cache.mkdir(parents=True)
    path = quantize.cache_path(directory, "int8")
    machine = platform.node()
    left = path.with_name(f".{path.name}.{machine}.{killed.pid}.tmp")
    running = path.with_name(f".{path.name}.{machine}.{os.getppid()}.tmp")
    elsewhere = path.with_name(f".{path.name}.another-host.{killed.pid}.tmp")
    others = path.with_name(f".another.{machine}.{killed.pid}.tmp")
    old = path.with_name(f".{path.name}.{os.getppid()}.tmp")  # as older versions named them
    foreign = path.with_name(f".{path.name}.draft.tmp")  # of another program
    for file in (left, running, elsewhere, others, old, foreign):
        file.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    open_coded(directory)
    assert set(cache.iterdir()) == {path, running, elsewhere, others, foreign}
    assert quantize.prune() == len(b"half of it")
    assert set(cache.iterdir()) == {path, running, elsewhere, foreign}
