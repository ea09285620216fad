"""What a GPT-2's parameters are called and how large they are, in our words and in the hub's."""

from __future__ import annotations

from gpt2cli.config.model import ModelConfig

# Ours → the hub's, applied in this order. Matrices are (in, out) on both sides, so nothing
# is transposed.
NAMES = (
    ("token_embedding.", "wte."),
    ("position_embedding.", "wpe."),
    ("final_norm.", "ln_f."),
    ("blocks.", "h."),
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("attention.qkv.", "attn.c_attn."),
    ("attention.out.", "attn.c_proj."),
    ("feed_forward.up.", "mlp.c_fc."),
    ("feed_forward.down.", "mlp.c_proj."),
    (".scale", ".weight"),
    (".shift", ".bias"),
)
PREFIX = "transformer."  # some checkpoints have it, some do not
MASKS = (".attn.bias", ".attn.masked_bias")  # causal masks, which old checkpoints carry
HEAD = "lm_head.weight"
QKV_BIAS = ".attn.c_attn.bias"


def hub_name(name: str) -> str:
    """The hub's name, without prefix, of one of our parameters."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of `model.GPT2` and its shape, without building it."""
    C = config.emb_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocab_size, C),
        "position_embedding.weight": (config.context_length, C),
    }
    for i in range(config.n_layers):
        block = f"blocks.{i}."
        shapes |= _norm(block + "norm1", C) | _linear(block + "attention.qkv", C, 3 * C)
        if not config.qkv_bias:
            del shapes[block + "attention.qkv.bias"]
        shapes |= _linear(block + "attention.out", C, C) | _norm(block + "norm2", C)
        shapes |= _linear(block + "feed_forward.up", C, 4 * C)
        shapes |= _linear(block + "feed_forward.down", 4 * C, C)
    return shapes | _norm("final_norm", C)


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.scale": (width,), f"{name}.shift": (width,)}


def _linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}
