"""A model written for other programs: transformers and mlx-lm load it, and nothing is lost."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from adapters import own
from helpers import random_model
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint, exporting
from gpt2cli.weights.merging import Chosen

X = torch.arange(20)[None]


def test_transformers_loads_it_and_finds_the_same_vocabulary(
    tiny_directory: Path, tmp_path: Path
) -> None:
    exporting.to_directory(tiny_directory, tmp_path / "out")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(theirs(X).logits, checkpoint.load(tiny_directory)(X), atol=1e-5)
    text = "ROMEO: it's  naïve<|endoftext|>"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(text)["input_ids"] == Tokenizer.load(tiny_directory).encode(text)
    assert theirs.config.eos_token_id == Tokenizer.load(tiny_directory).end_of_text


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_mlx_lm_loads_it(
    tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig, qkv_bias: bool
) -> None:
    """Only where mlx-lm is installed."""
    mlx_lm, mx = pytest.importorskip("mlx_lm"), pytest.importorskip("mlx.core")
    source = Path(shutil.copytree(tiny_directory, tmp_path / "source"))
    checkpoint.save(random_model(replace(tiny_config, qkv_bias=qkv_bias)), source, 0, torch.float32)
    exporting.to_directory(source, tmp_path / "out")
    model, _ = mlx_lm.load(str(tmp_path / "out"))
    theirs = np.array(model(mx.array(X.tolist())))
    assert np.abs(theirs - checkpoint.load(source)(X).numpy()).max() < 1e-3


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_every_precision_is_what_pytorch_saves(
    tmp_path: Path,
    tiny_directory: Path,
    tiny_config: ModelConfig,
    precision: str,
    dtype: torch.dtype,
    qkv_bias: bool,
) -> None:
    """To the bit, although this one comes without PyTorch."""
    source = Path(shutil.copytree(tiny_directory, tmp_path / "source"))
    model = random_model(replace(tiny_config, qkv_bias=qkv_bias))
    checkpoint.save(model, source, 0, torch.float32)
    exporting.to_directory(source, tmp_path / "out", precision)
    checkpoint.save(model, tmp_path / "saved", Tokenizer.load(source).end_of_text or 0, dtype)
    config, ours = checkpoint.read(tmp_path / "out")
    expected = checkpoint.read(tmp_path / "saved")
    assert config == expected[0]
    for name, tensor in expected[1].items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(ours[name].bits, tensor.bits), name
    read = [(tmp_path / name / "config.json").read_text() for name in ("out", "saved")]
    assert read[0] == read[1]


def test_without_a_precision_it_is_the_one_that_is_stored(
    tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    half = Path(shutil.copytree(tiny_directory, tmp_path / "half"))
    checkpoint.save(random_model(tiny_config), half, 0, torch.bfloat16)
    exporting.to_directory(half, tmp_path / "out")
    tensors = checkpoint.read(tmp_path / "out")[1]
    assert {tensor.dtype for tensor in tensors.values()} == {"bfloat16"}
    adapter = Chosen(own(tmp_path / "lora", tiny_config))
    exporting.to_directory(half, tmp_path / "merged", adapters=[adapter])
    merged = checkpoint.load(tmp_path / "merged")
    for p, expected in zip(
        merged.parameters(), checkpoint.load(half, [adapter]).parameters(), strict=True
    ):
        assert torch.equal(p, expected)  # in fp32, in which nothing is lost


def test_what_is_there_is_replaced_only_if_it_may_and_is_a_model(
    tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    out = tmp_path / "out"
    exporting.to_directory(tiny_directory, out)
    (out / "tokenizer.json").write_text("{}")  # of another model, and no vocabulary
    with pytest.raises(UsageError, match="exists"):
        exporting.to_directory(tiny_directory, out)
    exporting.to_directory(tiny_directory, out, "bf16", overwrite=True)
    assert not (out / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").touch()
    with pytest.raises(UsageError, match="holds no model"):
        exporting.to_directory(tiny_directory, mine, overwrite=True)
    assert (mine / "letter.txt").exists()
    file = tmp_path / "model.gguf"
    file.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists; set overwrite"):
        exporting.to_gguf(tiny_directory, file)
    with pytest.raises(UsageError, match="exists; set overwrite"):
        exporting.adapter_to_gguf(tiny_directory, file, Chosen(own(tmp_path / "lora", tiny_config)))
    assert file.read_bytes() == b"mine"


def test_what_fails_leaves_nothing_behind(tiny_directory: Path, tmp_path: Path) -> None:
    with (
        patch("gpt2cli.files.shutil.disk_usage", return_value=SimpleNamespace(free=0)),
        pytest.raises(UsageError, match=r"has 0\.0 GB free"),
    ):
        exporting.to_directory(tiny_directory, tmp_path / "out")
    source = Path(shutil.copytree(tiny_directory, tmp_path / "source"))
    model = checkpoint.load(source)
    with torch.no_grad():
        model.final_norm.scale[0] = 1e6
    checkpoint.save(model, source, 0, torch.float32)
    with pytest.raises(WeightsError, match=r"ln_f\.weight has numbers too large for float16"):
        exporting.to_directory(source, tmp_path / "out", "fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
