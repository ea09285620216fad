"""What is written as GGUF: the gguf package and transformers read it, and find the same model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import ggufs
import numpy as np
import pytest
import torch
from helpers import TEXT, random_model
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import TokenizerError, UsageError, WeightsError
from gpt2cli.text import vocabulary
from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint
from gpt2cli.weights.gguf import export

# transformers takes any file's context for 1,024.
CONFIG = ModelConfig(vocab_size=310, context_length=1024, emb_dim=32, n_heads=2, n_layers=2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with ten more rows in its embedding than tokens in its vocabulary."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_vocabulary(TEXT, 300, path)
    assert tokenizer.end_of_text is not None
    checkpoint.save(random_model(CONFIG), path, tokenizer.end_of_text, torch.float32)
    return path


def test_transformers_loads_the_same_model_and_vocabulary(directory: Path, tmp_path: Path) -> None:
    ggufs.write(directory, tmp_path / "model.gguf")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    x = torch.arange(40)[None]
    assert torch.allclose(theirs(x).logits, checkpoint.load(directory)(x), atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    own = AutoTokenizer.from_pretrained(directory)
    text = "ROMEO: it's  naïve 漢字\n\n😀<|endoftext|>then"
    assert tokenizer(text)["input_ids"] == own(text)["input_ids"]


def test_the_gguf_package_finds_every_number_and_what_llama_cpp_asks_for(
    directory: Path, tmp_path: Path
) -> None:
    path = ggufs.write(directory, tmp_path / "model.gguf")
    found, model = ggufs.tensors(path), checkpoint.load(directory)
    up = model.blocks[1].feed_forward.up
    assert np.array_equal(found["blk.1.ffn_up.weight"], up.weight.T.numpy())
    assert np.array_equal(found["blk.1.ffn_up.bias"], up.bias.numpy())
    assert np.array_equal(found["token_embd.weight"], model.token_embedding.weight.numpy())
    assert "output.weight" not in found  # the head is the token embedding
    data = ggufs.metadata(path)
    assert (data["general.architecture"], data["general.name"]) == ("gpt2", "tiny")
    assert data["gpt2.context_length"] == 1024
    assert data["gpt2.feed_forward_length"] == 128
    assert data["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert (data["tokenizer.ggml.model"], data["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    end = data["tokenizer.ggml.eos_token_id"]
    assert data["tokenizer.ggml.tokens"][end] == END_OF_TEXT
    kinds = data["tokenizer.ggml.token_type"]
    assert kinds[end] == gguf.TokenType.CONTROL
    assert kinds.count(gguf.TokenType.UNUSED) == 10
    assert len(set(data["tokenizer.ggml.tokens"])) == 310


def test_a_model_without_qkv_biases_gets_zeros(tmp_path: Path, tiny_directory: Path) -> None:
    """llama.cpp refuses a file without them."""
    model = random_model(replace(CONFIG, vocab_size=300, qkv_bias=False))
    checkpoint.save(model, tmp_path, 0, torch.float32)
    words = vocabulary.read(tiny_directory)
    found = ggufs.tensors(ggufs.write(tmp_path, tmp_path / "model.gguf", words=words))
    assert np.array_equal(found["blk.1.attn_qkv.bias"], np.zeros(96))


@pytest.mark.parametrize(
    ("precision", "head", "others"),
    [
        ("fp32", "F32", "F32"),
        ("fp16", "F16", "F16"),
        ("bf16", "BF16", "BF16"),
        ("q8_0", "Q8_0", "Q8_0"),
        ("q4_0", "Q8_0", "Q4_0"),
    ],
)
def test_matrices_take_the_precision_and_the_rest_stays_in_fp32(
    directory: Path, tmp_path: Path, precision: str, head: str, others: str
) -> None:
    path = ggufs.write(directory, tmp_path / "model.gguf", precision)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["token_embd.weight"] == head
    assert kinds["blk.0.attn_qkv.weight"] == kinds["blk.1.ffn_down.weight"] == others
    assert {kinds[n] for n in ("position_embd.weight", "blk.0.attn_qkv.bias")} == {"F32"}
    coarse = {"fp16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2, "q4_0": 0.15}.get(precision, 0)
    exact = checkpoint.load(directory).blocks[0].feed_forward.up.weight.T.numpy()
    error = np.abs(ggufs.tensors(path)["blk.0.ffn_up.weight"] - exact).max()
    assert error <= coarse * np.abs(exact).max()


def test_added_tokens_keep_their_kind(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    (copy / "added_tokens.json").write_text('{"<|user|>": 300}')
    data = ggufs.metadata(ggufs.write(copy, tmp_path / "model.gguf"))
    assert data["tokenizer.ggml.tokens"][300] == "<|user|>"
    assert data["tokenizer.ggml.token_type"][300] == gguf.TokenType.USER_DEFINED


def test_what_llama_cpp_would_read_otherwise_is_refused(
    tiny_directory: Path, directory: Path
) -> None:
    """Before anything is written."""
    words = vocabulary.read(directory)
    config = checkpoint.read(tiny_directory)[0]
    with pytest.raises(UsageError, match="a width that divides by 32, and this model's is 24"):
        export.Plan(config, words, "q8_0")
    with pytest.raises(TokenizerError, match="cuts text otherwise"):
        export.Plan(CONFIG, replace(words, ignore_merges=True), "fp32")
    with pytest.raises(TokenizerError, match="would end texts at another"):
        export.Plan(CONFIG, replace(words, added={}), "fp32")
    with pytest.raises(TokenizerError, match="more before a text than one token"):
        export.Plan(CONFIG, replace(words, opening=[1, 2]), "fp32")


def test_numbers_that_a_precision_cannot_hold_leave_what_was_there(
    directory: Path, tmp_path: Path
) -> None:
    copy, path = Path(shutil.copytree(directory, tmp_path / "copy")), tmp_path / "model.gguf"
    model = checkpoint.load(copy)
    with torch.no_grad():
        model.blocks[0].feed_forward.up.weight[3, 3] = 1e6
    checkpoint.save(model, copy, 0, torch.float32)
    path.write_bytes(b"older")
    with pytest.raises(
        WeightsError, match=r"h\.0\.mlp\.c_fc\.weight has numbers too large for F16"
    ):
        ggufs.write(copy, path, "fp16")
    assert path.read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
