"""Checkpoints: other people's files into our model, ours into theirs, damage into one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import random_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError, WeightsError
from gpt2cli.weights import checkpoint


def rewrite(directory: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) drop tensors of a checkpoint."""
    tensors: dict[str, torch.Tensor | None] = {
        **load_file(directory / "model.safetensors"),
        **change,
    }
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors")


X = torch.arange(20)[None]


def test_saved_and_loaded_is_the_same_model(tiny_directory: Path, tiny_config: ModelConfig) -> None:
    model = checkpoint.load(tiny_directory)
    assert model.config == tiny_config
    assert torch.equal(model(X), random_model(tiny_config)(X))
    assert not model.training


def test_what_transformers_saves_can_be_loaded(tiny_directory: Path, tmp_path: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory).eval()
    theirs.save_pretrained(tmp_path)
    assert torch.allclose(checkpoint.load(tmp_path)(X), theirs(X).logits, atol=1e-5)


def test_sharded_weights_can_be_loaded(tiny_directory: Path, tmp_path: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(checkpoint.load(tmp_path)(X), checkpoint.load(tiny_directory)(X))


def test_a_missing_shard_is_named(tiny_directory: Path, tmp_path: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(WeightsError, match=gone.name):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_names_with_a_prefix_or_without_masks_and_a_stored_head_are_fine(
    directory: Path, prefix: str
) -> None:
    expected = checkpoint.load(directory)(X)
    tensors = load_file(directory / "model.safetensors")
    assert not any(name.startswith("transformer.") for name in tensors)
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    named[prefix + "h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    named[prefix + "h.1.attn.masked_bias"] = torch.tensor(-1e4)
    named["lm_head.weight"] = named[prefix + "wte.weight"].clone()
    save_file(named, directory / "model.safetensors")
    assert torch.equal(checkpoint.load(directory)(X), expected)


def test_every_missing_unexpected_and_misshapen_tensor_is_listed(directory: Path) -> None:
    rewrite(
        directory,
        {
            "h.0.ln_1.weight": None,
            "wpe.weight": torch.zeros(16, 24),
            "adapter": torch.zeros(1),
        },
    )
    with pytest.raises(WeightsError) as caught:
        checkpoint.load(directory)
    message = str(caught.value)
    assert "missing h.0.ln_1.weight" in message
    assert "unexpected adapter" in message
    assert "wpe.weight is (16, 24) instead of (32, 24)" in message


def test_a_tensor_that_is_there_twice_is_refused(directory: Path) -> None:
    """With the prefix and without it: nothing says which one is meant."""
    rewrite(directory, {"transformer.wpe.weight": torch.zeros(32, 24)})
    with pytest.raises(WeightsError, match=r"holds wpe\.weight a second time"):
        checkpoint.load(directory)


def test_matrices_stored_the_other_way_round_are_refused(directory: Path) -> None:
    up = load_file(directory / "model.safetensors")["h.0.mlp.c_fc.weight"]
    rewrite(directory, {"h.0.mlp.c_fc.weight": up.T.contiguous()})
    with pytest.raises(
        WeightsError, match=r"h\.0\.mlp\.c_fc\.weight is \(96, 24\) instead of \(24, 96\)"
    ):
        checkpoint.load(directory)


def test_a_model_without_qkv_bias_stays_one(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(replace(tiny_config, qkv_bias=False))
    checkpoint.save(model, tmp_path, end_of_text=0, dtype=torch.float32)
    loaded = checkpoint.load(tmp_path)
    assert not loaded.config.qkv_bias
    assert torch.equal(loaded(X), model(X))


def test_qkv_biases_trained_elsewhere_are_not_lost(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = random_model(replace(tiny_config, qkv_bias=False))
    checkpoint.save(model, tmp_path, end_of_text=0, dtype=torch.float32)
    rewrite(tmp_path, {"h.1.attn.c_attn.bias": torch.ones(72)})
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.allclose(checkpoint.load(tmp_path)(X), theirs(X).logits, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_half_precision_is_read_into_fp32(
    dtype: torch.dtype, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    model = random_model(tiny_config)
    checkpoint.save(model, tmp_path, end_of_text=0, dtype=dtype)
    loaded = checkpoint.load(tmp_path)
    for ours, original in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, original.to(dtype).float())


def test_pickled_weights_are_refused_and_not_opened(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickled"):
        checkpoint.load(directory)


def test_a_directory_without_weights_or_config_says_so(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors"):
        checkpoint.load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        checkpoint.load(directory)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["torch", "numpy"])
def test_loading_fp32_makes_no_second_copy(
    tmp_path: Path, tiny_directory: Path, decoder: str
) -> None:
    """Peak memory over that of a tiny model, in a process of its own, relative to the weights."""
    config = ModelConfig(vocab_size=20000, context_length=64, emb_dim=512, n_heads=8, n_layers=12)
    checkpoint.save(random_model(config), tmp_path, end_of_text=0, dtype=torch.float32)
    size = (tmp_path / "model.safetensors").stat().st_size
    script = f"""
from pathlib import Path
from gpt2cli.weights import checkpoint
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.system.machine import peak_memory
def run(directory):
    if {decoder!r} == "torch":
        decoder = TorchDecoder(checkpoint.load(directory))
    else:
        config, tensors = checkpoint.read(directory)
        decoder = NumpyDecoder(config, {{name: t.to_numpy() for name, t in tensors.items()}})
    decoder.read([Chunk(decoder.open(), 0, [1, 2, 3, 4])])
run(Path({str(tiny_directory)!r}))  # what libraries take
before = peak_memory()
run(Path({str(tmp_path)!r}))
print((peak_memory() - before) / {size})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) <= 1.3


def test_config_json_tells_transformers_where_text_ends(tiny_directory: Path) -> None:
    config = json.loads((tiny_directory / "config.json").read_text())
    assert config["eos_token_id"] == 0
    assert config["tie_word_embeddings"] is True


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float16])
def test_causal_masks_of_any_type_are_left_alone(directory: Path, dtype: torch.dtype) -> None:
    expected = checkpoint.load(directory)(X)
    mask = torch.ones(1, 1, 32, 32).tril().to(dtype)
    scalar = torch.tensor(-10000, dtype=torch.int64)
    rewrite(directory, {"h.0.attn.bias": mask, "h.1.attn.masked_bias": scalar})
    assert torch.equal(checkpoint.load(directory)(X), expected)


def test_a_head_of_its_own_is_refused(directory: Path) -> None:
    """As transformers, which uses it."""
    head = load_file(directory / "model.safetensors")["wte.weight"].roll(1, 0)
    rewrite(directory, {"lm_head.weight": head.contiguous()})
    theirs = GPT2LMHeadModel.from_pretrained(directory)
    assert torch.equal(theirs.lm_head.weight, head)
    with pytest.raises(WeightsError, match=r"a head of its own: lm_head.weight is not the"):
        checkpoint.load(directory)


def test_a_config_with_a_head_is_fine_where_that_is_the_embedding_again(directory: Path) -> None:
    expected = checkpoint.load(directory)(X)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(WeightsError, match=r"has no lm_head\.weight, although its config is of a"):
        checkpoint.load(directory)
    embedding = load_file(directory / "model.safetensors")["wte.weight"]
    rewrite(directory, {"lm_head.weight": embedding.clone()})
    theirs = GPT2LMHeadModel.from_pretrained(directory).eval()
    assert torch.equal(checkpoint.load(directory)(X), expected)
    assert torch.allclose(theirs(X).logits, expected, atol=1e-5)
    rewrite(directory, {"lm_head.weight": embedding.roll(1, 0).contiguous()})
    with pytest.raises(WeightsError, match=r"a head of its own"):
        checkpoint.load(directory)


@pytest.mark.parametrize(
    "name",
    [5, None, [], {}, "../model.safetensors", "/etc/passwd", "a/b.safetensors", "\ud800", ""],
)
def test_an_index_names_files_beside_it(directory: Path, name: object) -> None:
    (directory / "model.safetensors").rename(directory / "other.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"wte.weight": name}}))
    with pytest.raises(WeightsError, match="which is no file beside it"):
        checkpoint.read(directory)


@pytest.mark.parametrize("text", ["[" * 100_000, "5", '{"weight_map": []}', "{}"])
def test_an_index_that_is_none_is_damaged(directory: Path, text: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match="is damaged; fetch the model again"):
        checkpoint.read(directory)


def test_a_shard_that_is_missing_or_no_file_is_named(directory: Path) -> None:
    shutil.move(directory / "model.safetensors", directory / "a.safetensors")
    index = json.dumps(
        {"weight_map": {"wte.weight": "a.safetensors", "wpe.weight": "b.safetensors"}}
    )
    (directory / "model.safetensors.index.json").write_text(index)
    for make in (lambda _: None, os.mkfifo):
        make(directory / "b.safetensors")
        with pytest.raises(WeightsError, match=r"has no file b.safetensors; fetch the model"):
            checkpoint.read(directory)


def test_many_problems_are_counted(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"n_layer": 10_000}))
    with pytest.raises(WeightsError, match="28 tensors instead of 120,004") as error:
        checkpoint.read(directory)
    assert len(str(error.value)) < 300
    (directory / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(WeightsError, match=r"; and 4 more$"):
        checkpoint.read(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last", [0.0, 1.0])
def test_a_head_is_compared_to_its_last_number(
    directory: Path, dtype: torch.dtype, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_COMPARED", 100)
    embedding = load_file(directory / "model.safetensors")["wte.weight"].to(dtype)
    rewrite(directory, {"wte.weight": embedding, "lm_head.weight": embedding.clone()})
    head = embedding.clone()
    head[-1, -1] += last
    rewrite(directory, {"lm_head.weight": head})
    if last:
        with pytest.raises(WeightsError, match="a head of its own"):
            checkpoint.read(directory)
    else:
        checkpoint.read(directory)


def test_a_head_of_another_precision_and_one_without_numbers_are_the_embedding_too(
    directory: Path,
) -> None:
    embedding = load_file(directory / "model.safetensors")["wte.weight"].bfloat16()
    rewrite(directory, {"wte.weight": embedding, "lm_head.weight": embedding.float()})
    checkpoint.read(directory)
    embedding[0, 0] = torch.nan
    rewrite(directory, {"wte.weight": embedding, "lm_head.weight": embedding.clone()})
    checkpoint.read(directory)


def test_a_head_without_dimensions_is_a_wrong_shape(directory: Path) -> None:
    scalar = torch.tensor(1.0)
    rewrite(directory, {"wte.weight": scalar, "lm_head.weight": scalar.clone()})
    with pytest.raises(WeightsError, match=r"wte.weight is \(\) instead of \(300, 24\)"):
        checkpoint.read(directory)
