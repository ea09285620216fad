"""Adapters: PEFT's files here, ours there, and damage in one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import FULL, PLAIN, change_config, change_tensors, foreign, own, peft_logits
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import WeightsError
from gpt2cli.weights import adapter, checkpoint
from gpt2cli.weights.adapter import Adapter, LowRank
from gpt2cli.weights.merging import Chosen

X = torch.arange(20)[None]


def logits(directory: Path, *adapters: Chosen) -> torch.Tensor:
    return checkpoint.load(directory, adapters)(X)


@pytest.mark.parametrize("settings", [PLAIN, FULL, FULL | {"layers_to_transform": [1]}])
def test_an_adapter_of_pefts_computes_what_it_does_there(
    tiny_directory: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with torch.no_grad():
        wanted = foreign(tiny_directory, tmp_path, settings)(X).logits
    found = logits(tiny_directory, Chosen(tmp_path))
    assert (found - logits(tiny_directory)).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [PLAIN, FULL, FULL | {"layers_to_transform": [1]}])
def test_what_was_read_and_is_written_again_computes_the_same_in_peft(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with torch.no_grad():
        wanted = foreign(tiny_directory, tmp_path / "theirs", settings)(X).logits
    read = adapter.read(tmp_path / "theirs", tiny_config)
    adapter.write(read, tmp_path / "ours", tiny_config)
    found = peft_logits(tiny_directory, tmp_path / "ours", X)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    again = adapter.read(tmp_path / "ours", tiny_config)
    assert again.updates.keys() == read.updates.keys()
    assert [u.scale for u in again.updates.values()] == [u.scale for u in read.updates.values()]
    assert again.saved.keys() == read.saved.keys()


def test_an_adapter_of_ours_is_one_for_peft_which_finds_its_model(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    updates = adapter.read(own(tmp_path, tiny_config), tiny_config).updates
    made = Adapter(updates, dropout=0.1, base=str(tiny_directory))
    adapter.write(made, tmp_path, tiny_config)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(X).logits
    torch.testing.assert_close(found, logits(tiny_directory, Chosen(tmp_path)), atol=1e-5, rtol=0)
    assert theirs.peft_config["default"].lora_dropout == 0.1
    with safe_open(tmp_path / "adapter_model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_half_precision_is_read_as_fp32(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    own(tmp_path, tiny_config)
    whole = logits(tiny_directory, Chosen(tmp_path))
    name = "h.0.attn.c_attn.lora_A.weight"
    a = adapter.read(tmp_path, tiny_config).updates["blocks.0.attention.qkv.weight"].a
    change_tensors(tmp_path, {name: a.astype(np.float16)})
    half = logits(tiny_directory, Chosen(tmp_path))
    assert 0 < (whole - half).abs().max() < 0.1


ZEROS = np.zeros((2, 2), np.float32)
A, B = "h.1.mlp.c_fc.lora_A.weight", "h.1.mlp.c_fc.lora_B.weight"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora asks for DoRA"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias asks for biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": "many"}, "'r' must be a rank, not 'many'"),
        ({"r": 5}, "has rank 2 in transformer.h.0.attn.c_attn, and 5 in its config"),
        ({"lora_alpha": "2"}, "'lora_alpha' must be a number"),
        ({"lora_alpha": 10**400}, "'lora_alpha' must be a number"),
        ({"rank_pattern": [1]}, "'rank_pattern' must be an object"),
        ({"rank_pattern": {"(a+)+": 1}}, "must be a simple regular expression"),
        ({"alpha_pattern": {"[": 1}}, "must be a simple regular expression"),
        ({"target_modules": "(.*.*)*x"}, "must be a simple regular expression"),
        ({"target_modules": {"c_attn": 1}}, "'target_modules' must be a list"),
        ({"modules_to_save": ["ln_f"]}, "incomplete: it has nothing for transformer.ln_f"),
        ({"modules_to_save": "ln_f"}, "'modules_to_save' must be a list"),
        ({"layers_to_transform": ["0"]}, "must be a list of layers"),
    ],
    ids=str,
)
def test_a_config_of_anything_else_is_refused_by_name(
    tiny_config: ModelConfig, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    change_config(own(tmp_path, tiny_config), **settings)
    with pytest.raises(WeightsError) as error:
        adapter.read(tmp_path, tiny_config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({A: None, B: None}, "incomplete: it has nothing for transformer.h.1.mlp.c_fc.weight"),
        ({B: None}, "h.1.mlp.c_fc has lora_A, not lora_B"),
        ({A: ZEROS}, "made for a GPT-2 of another size: h.1.mlp.c_fc.weight is (24, 96) here"),
        ({A: np.zeros(2, np.float32)}, "is damaged: in transformer.h.1.mlp.c_fc lora_A is (2,)"),
        ({A: np.zeros((2, 0), np.float32), B: np.zeros((96, 2), np.float32)}, "is damaged"),
        ({A: np.full((2, 24), np.nan, np.float32)}, "NaN or infinity"),
        ({A: np.zeros((2, 24), np.int64)}, "stored as I64"),
        ({"h.7.mlp.c_fc.lora_A.weight": ZEROS}, "another size, which has 'transformer.h.7.mlp"),
        ({"h.1.attn.c_attn.lora_magnitude_vector": ZEROS}, "holds DoRA"),
        ({"wte.lora_embedding_A": ZEROS}, "holds an adapted embedding"),
        ({"wte.weight": ZEROS}, "holds a token embedding of its own"),
        ({"h.0.attn.c_attn.base_layer.bias": ZEROS}, "holds biases of the base model"),
        ({"ln_f.weight": ZEROS}, "another size: ln_f.weight"),
        ({"ln_f.weight": np.zeros(24, np.float32)}, "transformer.ln_f.weight, which is no change"),
        ({"score.weight": ZEROS}, "holds transformer.score.weight, which is no change"),
        ({"x" * 5000: ZEROS}, "which is no change"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_do_not_belong_are_refused_by_name(
    tiny_config: ModelConfig, tmp_path: Path, change: dict[str, NDArray | None], message: str
) -> None:
    change_tensors(own(tmp_path, tiny_config), change)
    with pytest.raises(WeightsError) as error:
        adapter.read(tmp_path, tiny_config)
    assert message in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("kind", [{"use_dora": True}, {"bias": "all"}, {"target_modules": ["wte"]}])
def test_what_peft_saves_of_other_kinds_is_refused(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path, kind: dict[str, Any]
) -> None:
    foreign(tiny_directory, tmp_path, PLAIN | kind)
    with pytest.raises(WeightsError, match=r"DoRA|bias is 'all'|embedding"):
        adapter.read(tmp_path, tiny_config)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "nul", '{"r": NaN}', "[" * 10**5, '"' + "x" * 2**21 + '"']
)
def test_a_config_that_is_none_is_refused(
    tiny_config: ModelConfig, tmp_path: Path, text: str
) -> None:
    (own(tmp_path, tiny_config) / "adapter_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"JSON|too large"):
        adapter.read(tmp_path, tiny_config)


def test_a_pickle_is_refused(tiny_config: ModelConfig, tmp_path: Path) -> None:
    own(tmp_path, tiny_config)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"only as a pickle \(adapter_model.bin\)"):
        adapter.read(tmp_path, tiny_config)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_absent_or_no_file_is_named(
    tiny_config: ModelConfig, tmp_path: Path, name: str
) -> None:
    (own(tmp_path, tiny_config) / name).unlink()
    with pytest.raises(WeightsError, match=f"holds no adapter: it has no {name}"):
        adapter.read(tmp_path, tiny_config)
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match=f"holds no adapter: it has no {name}"):
        adapter.read(tmp_path, tiny_config)


def test_a_cut_file_is_damaged(tiny_config: ModelConfig, tmp_path: Path) -> None:
    path = own(tmp_path, tiny_config) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WeightsError, match="damaged"):
        adapter.read(tmp_path, tiny_config)


def test_every_target_that_peft_understands_is_checked_for_missing_tensors(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    """A list of ends of names, one regular expression, and whole names as PEFT saves them."""
    for i, targets in enumerate((["c_fc"], r".*\.mlp\.c_fc", ["h.1.mlp.c_fc"])):
        out = tmp_path / str(i)
        foreign(tiny_directory, out, PLAIN | {"target_modules": targets})
        assert "blocks.1.feed_forward.up.weight" in adapter.read(out, tiny_config).updates
        change_tensors(out, {A: None, B: None})
        with pytest.raises(WeightsError, match=r"nothing for transformer\.h\.1"):
            adapter.read(out, tiny_config)


def test_an_older_adapter_in_the_directory_is_replaced(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    own(tmp_path, tiny_config, seed=1)
    wanted = own(tmp_path / "new", tiny_config, seed=2)
    adapter.write(adapter.read(wanted, tiny_config), tmp_path, tiny_config)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (wanted / name).read_bytes()
    shutil.rmtree(wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_size_of_an_adapter_is_that_of_its_factors() -> None:
    a, b = np.zeros((8, 768), np.float32), np.zeros((2304, 8), np.float32)
    updates = {f"blocks.{i}.attention.qkv.weight": LowRank(a, b, 16.0) for i in range(12)}
    assert Adapter(updates).parameters == 294_912
