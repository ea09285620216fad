"""What a GPT-2 is called in a GGUF file, as llama.cpp's src/models/gpt2.cpp reads it."""

from __future__ import annotations

from types import ModuleType

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.weights.names import parameter_shapes

ARCHITECTURE = "gpt2"
TOKENIZER, PRE_TOKENIZER = "gpt2", "gpt-2"  # byte-level BPE, and how text is cut before it
QKV_BIAS = ".attn_qkv.bias"
# Ours → GGUF's, applied in this order.
_NAMES = (
    ("token_embedding.", "token_embd."),
    ("position_embedding.", "position_embd."),
    ("final_norm.", "output_norm."),
    ("blocks.", "blk."),
    ("norm1.", "attn_norm."),
    ("norm2.", "ffn_norm."),
    ("attention.qkv.", "attn_qkv."),
    ("attention.out.", "attn_output."),
    ("feed_forward.up.", "ffn_up."),
    ("feed_forward.down.", "ffn_down."),
    (".scale", ".weight"),
    (".shift", ".bias"),
)


def gguf_name(name: str) -> str:
    """GGUF's name of one of our parameters."""
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return name


def is_transposed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether one of our parameters is (out, in) there, and (in, out) here."""
    return name.startswith("blocks.") and len(shape) == 2


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter by our names, with the shape that it has there."""
    return {
        name: shape[::-1] if is_transposed(name, shape) else shape
        for name, shape in parameter_shapes(config).items()
    }


def package() -> ModuleType:
    """The `gguf` package. Raises `UsageError` if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UsageError("GGUF files need the gguf package: pip install 'gpt2cli[gguf]'") from None
    return gguf
