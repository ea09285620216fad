"""A GGUF file as a model: converted once, with every number it has, and found again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import ggufs
import numpy as np
import pytest
import torch
from helpers import random_model

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.text import vocabulary
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint, sources
from gpt2cli.weights.gguf import imported

X = torch.arange(20)[None]


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted files are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture
def file(tiny_directory: Path, tmp_path: Path) -> Path:
    return ggufs.write(tiny_directory, tmp_path / "tiny.gguf")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path) -> Path:
    """A checkpoint whose rows can be quantized, without QKV biases."""
    directory = tmp_path_factory.mktemp("wide")
    config = ModelConfig(300, context_length=32, emb_dim=64, n_heads=2, n_layers=2, qkv_bias=False)
    checkpoint.save(random_model(config), directory, 0, torch.float32)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny_directory / name, directory / name)
    return directory


def test_what_was_exported_comes_back_as_it_was(file: Path, tiny_directory: Path) -> None:
    directory = imported.convert(file)
    model, original = checkpoint.load(directory), checkpoint.load(tiny_directory)
    assert model.config == original.config
    for ours, theirs in zip(model.parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert vocabulary.read(directory) == vocabulary.read(tiny_directory)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "q8_0", "q4_0"])
def test_every_type_is_what_the_gguf_package_decodes(
    wide: Path, tmp_path: Path, precision: str
) -> None:
    path = ggufs.write(wide, tmp_path / "model.gguf", precision)
    config, tensors = checkpoint.read(imported.convert(path))
    assert not config.qkv_bias
    decoded = ggufs.tensors(path)
    up = tensors["blocks.1.feed_forward.up.weight"]
    assert np.array_equal(up.to_numpy(), decoded["blk.1.ffn_up.weight"].T)
    kept = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "float32")
    assert up.dtype == kept  # nothing is rounded, and halves take half
    embedding = tensors["token_embedding.weight"].to_numpy()
    assert np.array_equal(embedding, decoded["token_embd.weight"])


def test_a_head_that_repeats_the_embedding_in_more_bits_is_the_better_copy(
    wide: Path, tmp_path: Path
) -> None:
    """Quantizers that know no tied head write it a second time."""
    import gguf

    path = ggufs.write(wide, tmp_path / "model.gguf", "q4_0")
    reader, writer = gguf.GGUFReader(path), gguf.GGUFWriter(tmp_path / "head.gguf", "gpt2")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    exact = checkpoint.load(wide).token_embedding.weight.numpy()
    writer.add_tensor("output.weight", exact)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = checkpoint.read(imported.convert(tmp_path / "head.gguf"))[1]
    assert np.array_equal(tensors["token_embedding.weight"].to_numpy(), exact)


def test_added_tokens_and_an_opening_token_come_back(tiny_directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_directory, tmp_path / "copy"))
    model = random_model(replace(checkpoint.read(copy)[0], vocab_size=302))
    checkpoint.save(model, copy, 0, torch.float32)
    tokens = {"300": {"content": "<|user|>", "special": True}, "301": {"content": "<x>"}}
    settings = {"added_tokens_decoder": tokens, "add_bos_token": True}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    original = Tokenizer.load(copy)
    again = Tokenizer.load(imported.convert(ggufs.write(copy, tmp_path / "model.gguf")))
    text = "<|user|> what <x> that<|endoftext|>"
    assert again.encode(text) == original.encode(text)
    assert again.opening == original.opening == [original.end_of_text]


def test_a_file_is_converted_once_and_again_when_it_has_changed(
    file: Path, wide: Path, assets: Path
) -> None:
    first = imported.convert(file)
    weights = first / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert imported.convert(file) == imported.directory(file) == first
    assert weights.stat().st_mtime_ns == written
    ggufs.write(wide, file)
    assert imported.directory(file) is None
    second = imported.convert(file)
    assert checkpoint.read(second)[0].emb_dim == 64
    assert list((assets / "gpt2cli" / "gguf").iterdir()) == [second]  # the old copy is gone


def test_the_vocabulary_alone_costs_no_weights(file: Path) -> None:
    source = sources.fetch(sources.resolve(str(file)), vocabulary_only=True)
    assert source.directory is not None
    assert not (source.directory / "model.safetensors").exists()
    assert Tokenizer.load(source.directory).size == 300
    assert source.config().n_layers == 2
    assert sources.resolve(str(file)).directory is None
    whole = sources.fetch(source)
    assert whole.directory is not None
    assert (whole.directory / "model.safetensors").is_file()


def test_progress_counts_the_bytes_of_the_weights(file: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    directory = imported.convert(file, progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert calls[-1][1] == calls[-1][2] <= (directory / "model.safetensors").stat().st_size


def test_copies_of_files_that_are_gone_can_be_pruned(file: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(file, tmp_path / "other.gguf"))
    kept, gone = imported.convert(file), imported.convert(other)
    other.unlink()
    assert imported.prune() > 10_000
    assert kept.is_dir()
    assert not gone.exists()
    assert imported.remove(file) > 10_000
    assert not kept.exists()


def test_what_cannot_be_converted_says_why(file: Path, wide: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        sources.resolve(str(tmp_path / "missing.gguf"))
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(UsageError, match="there is no file"):
        sources.resolve(str(tmp_path / "pipe.gguf"))
    with (
        patch("gpt2cli.files.shutil.disk_usage", return_value=SimpleNamespace(free=0)),
        pytest.raises(UsageError, match=r"has 0\.0 GB free"),
    ):
        imported.convert(file)
    quantized = ggufs.write(wide, tmp_path / "wide.gguf", "q8_0")
    with (
        patch.dict(sys.modules, {"gguf": None}),
        pytest.raises(UsageError, match=r"pip install 'gpt2cli\[gguf\]'"),
    ):
        imported.convert(quantized)


def test_a_file_that_is_replaced_meanwhile_is_not_kept(
    file: Path, wide: Path, assets: Path
) -> None:
    def replace_it(*_: object) -> None:
        ggufs.write(wide, file)

    with pytest.raises(WeightsError, match=r"was replaced while it was read|became shorter"):
        imported.convert(file, progress=replace_it)
    assert not list(assets.rglob("model.safetensors"))
