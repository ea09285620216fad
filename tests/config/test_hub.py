"""The hub's config.json: what others write is read, and what is written others read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.config.hub import read_hub_config, to_hub_config
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError

TINY = ModelConfig(100, context_length=16, emb_dim=12, n_heads=3, n_layers=2)


HUB: dict[str, Any] = {
    "vocab_size": 100,
    "n_positions": 16,
    "n_embd": 12,
    "n_head": 3,
    "n_layer": 2,
}


def hub_config(tmp_path: Path, data: object) -> ModelConfig:
    path = tmp_path / "config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return read_hub_config(path)


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    n_heads = draw(st.integers(1, 40))
    return ModelConfig(
        vocab_size=draw(st.integers(1, 10**6)),
        context_length=draw(st.integers(1, 10**5)),
        emb_dim=n_heads * draw(st.integers(1, 200)),
        n_heads=n_heads,
        n_layers=draw(st.integers(1, 100)),
        drop_rate=draw(st.floats(0, 1, exclude_max=True)),
        qkv_bias=draw(st.booleans()),
        layer_norm_eps=draw(st.floats(1e-12, 1)),
    )


@settings(deadline=None, max_examples=100)
@given(config=model_configs())
def test_what_is_written_for_the_hub_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: ModelConfig
) -> None:
    data = to_hub_config(config, eos_token_id=0, dtype="float32")
    assert hub_config(tmp_path_factory.getbasetemp(), data) == config


@settings(deadline=None, max_examples=50)
@given(config=model_configs())
def test_transformers_reads_what_is_written_for_the_hub(config: ModelConfig) -> None:
    from transformers import GPT2Config

    theirs = GPT2Config.from_dict(to_hub_config(config, eos_token_id=7, dtype="float16"))
    assert theirs.model_type == "gpt2"
    assert (theirs.vocab_size, theirs.n_positions) == (config.vocab_size, config.context_length)
    assert theirs.to_dict()["n_ctx"] == config.context_length  # what mlx-lm and llama.cpp read
    assert (theirs.n_embd, theirs.n_head, theirs.n_layer) == (
        config.emb_dim,
        config.n_heads,
        config.n_layers,
    )
    assert theirs.embd_pdrop == theirs.resid_pdrop == config.drop_rate
    assert theirs.layer_norm_epsilon == config.layer_norm_eps
    assert theirs.activation_function == "gelu_new"
    assert theirs.n_inner is None
    assert theirs.tie_word_embeddings
    assert theirs.bos_token_id == theirs.eos_token_id == 7
    assert "float16" in str(theirs.dtype)


@pytest.mark.parametrize("use_diff", [True, False])
def test_reads_what_transformers_writes(tmp_path: Path, use_diff: bool) -> None:
    from transformers import GPT2Config

    theirs = GPT2Config(**HUB, resid_pdrop=0.3, layer_norm_epsilon=1e-6)
    ours = hub_config(tmp_path, theirs.to_json_string(use_diff=use_diff))
    assert ours == dataclasses.replace(TINY, drop_rate=0.3, layer_norm_eps=1e-6)
    assert hub_config(tmp_path, GPT2Config().to_json_string()) == ModelConfig(
        50257, 1024, 768, 12, 12
    )


def test_reads_n_ctx_where_n_positions_is_missing(tmp_path: Path) -> None:
    data = {**HUB, "n_ctx": 99}
    assert hub_config(tmp_path, data).context_length == 16
    del data["n_positions"]
    assert hub_config(tmp_path, data).context_length == 99


@pytest.mark.parametrize(
    "same",
    [
        {"n_inner": 48},
        {"n_inner": None},
        {"activation_function": "gelu_pytorch_tanh"},
        {"model_type": "gpt2", "tie_word_embeddings": True, "scale_attn_weights": True},
        {"tie_word_embeddings": False},
        {"summary_type": "cls_index", "task_specific_params": {"text-generation": {}}},
    ],
    ids=str,
)
def test_keys_that_change_nothing_are_accepted(tmp_path: Path, same: dict[str, Any]) -> None:
    assert hub_config(tmp_path, {**HUB, **same}) == TINY


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("activation_function", ["gelu_new"]),
        ("n_inner", 47),
        ("n_inner", "48"),
        ("tie_word_embeddings", None),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
    ],
)
def test_a_variation_that_would_compute_something_else_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"{key} is ") as error:
        hub_config(tmp_path, {**HUB, key: value})
    assert repr(value) in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ([], "must hold a JSON object"),
        (None, "must hold a JSON object"),
        ({}, "missing vocab_size"),
        ({**HUB, "n_embd": "12"}, "whole number, not '12'"),
        ({**HUB, "n_head": True}, "whole number, not True"),
        ({**HUB, "n_layer": 2.0}, "whole number, not 2.0"),
        ({**HUB, "n_head": 5}, "a multiple of n_heads (5), not 12"),
        ({**HUB, "resid_pdrop": 1}, "below 1, not 1.0"),
        ({**HUB, "layer_norm_epsilon": None}, "a number, not None"),
        pytest.param({**HUB, "n_embd": None}, "not None"),
        pytest.param({**HUB, "n_embd": {}}, "not {}"),
        pytest.param({**HUB, "resid_pdrop": 10**400}, "a number"),
        pytest.param({**HUB, "layer_norm_epsilon": float("inf")}, "not inf"),
        pytest.param("[" * 100_000, "is not valid JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_hub_file_that_describes_no_gpt2_is_named(
    tmp_path: Path, data: object, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        hub_config(tmp_path, data)
    assert str(error.value).startswith(str(tmp_path / "config.json"))
    assert message in str(error.value)


def test_a_hub_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="cannot read") as error:
        read_hub_config(path)
    assert str(path) in str(error.value)
    path.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_hub_config(path)


@pytest.mark.parametrize("size", [10**6, 10**30, 10**400])
def test_a_config_json_with_layers_without_end_is_refused(tmp_path: Path, size: int) -> None:
    sizes = {"vocab_size": 8, "n_positions": 8, "n_embd": 8, "n_head": 2, "n_layer": size}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(ConfigError, match="n_layers must be at most 10,000"):
        read_hub_config(tmp_path / "config.json")
