"""`config.json`, as transformers writes and reads it, into a `ModelConfig` and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2cli.config.fields import build
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError, shown

# config.json of the Hugging Face layout → ours. The first key present wins.
_HUB_KEYS = {
    "vocab_size": ("vocab_size",),
    "context_length": ("n_positions", "n_ctx"),
    "emb_dim": ("n_embd",),
    "n_heads": ("n_head",),
    "n_layers": ("n_layer",),
    "drop_rate": ("resid_pdrop",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "qkv_bias": ("qkv_bias",),
}

# Variations that transformers' GPT2Config allows and this model does not support.
_HUB_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),  # see `is_tied`
}


def read_hub_config(path: Path) -> ModelConfig:
    """Read a Hugging Face `config.json` into a `ModelConfig`.

    Raises `ConfigError` when the file is not GPT-2's or asks for a variation that
    would change the computation.
    """
    data = _read_json(path)
    for key, allowed in _HUB_FIXED.items():
        if key in data and data[key] not in allowed:
            raise ConfigError(
                f"{path} is not a GPT-2 that gpt2cli can run: {key} is {shown(data[key])}"
            )
    values = {
        ours: next(data[theirs] for theirs in keys if theirs in data)
        for ours, keys in _HUB_KEYS.items()
        if any(theirs in data for theirs in keys)
    }
    config = build(ModelConfig, values, str(path))
    if (inner := data.get("n_inner")) not in (None, 4 * config.emb_dim):
        raise ConfigError(f"{path}: n_inner is {shown(inner)}; GPT-2 has 4 × n_embd")
    return config


def is_tied(path: Path) -> bool:
    """Whether a `config.json` ties the head to the token embedding, as GPT-2's do.

    If not, the weights hold a head, which may still equal the token embedding.
    """
    return bool(_read_json(path).get("tie_word_embeddings", True))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return data


def to_hub_config(config: ModelConfig, eos_token_id: int, dtype: str) -> dict[str, object]:
    """The `config.json` that transformers reads for this model: `read_hub_config` inverted."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,  # for mlx-lm and llama.cpp
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": 0.0,
        "resid_pdrop": config.drop_rate,
        "layer_norm_epsilon": config.layer_norm_eps,
        "qkv_bias": config.qkv_bias,
        "tie_word_embeddings": True,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "dtype": dtype,
    }
