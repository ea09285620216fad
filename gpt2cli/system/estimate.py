"""How large a GPT-2 is and what it needs, from its `ModelConfig` alone.

Bytes and operations are computed, never measured, so that they are known before anything is
downloaded. Letters as in `model`: L layers, C width, H heads, T context, V vocabulary.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from gpt2cli.config.model import ModelConfig
from gpt2cli.system.precision import PRECISIONS

SHOWN = ("fp32", "bf16", "int8", "int4")  # fp16 takes as much as bf16
_FP32 = 4
_LOGITS = 200_000_000  # bytes: `training.loss.LOGITS_BYTES`, which is above this module
_H100_MEMORY = 80e9  # bytes; NVIDIA's data sheet for the H100 SXM


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by component, the head tied to the token embedding."""
    L, C = config.n_layers, config.emb_dim
    qkv_bias = 3 * C if config.qkv_bias else 0
    return {
        "token embedding": config.vocab_size * C,
        "position embedding": config.context_length * C,
        "attention": L * (3 * C * C + qkv_bias + C * C + C),
        "feed-forward": L * (4 * C * C + 4 * C + 4 * C * C + C),
        "layer norms": L * 4 * C + 2 * C,
    }


def total_parameters(config: ModelConfig, *, tied: bool = True) -> int:
    """The number of parameters; an untied head adds a matrix of V · C."""
    head = 0 if tied else config.vocab_size * config.emb_dim
    return sum(parameters(config).values()) + head


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Bytes of the weights; with int8 or int4 only the matrices are quantized."""
    count = total_parameters(config)
    if not PRECISIONS[precision].is_quantized:
        return int(count * PRECISIONS[precision].bytes)
    head, matrices = _multiplied(config)
    return _quantized_bytes(config, precision) + (count - head - matrices) * _FP32


def _multiplied(config: ModelConfig) -> tuple[int, int]:
    """Numbers in the head, and in the matrices of all layers."""
    C = config.emb_dim
    return config.vocab_size * C, config.n_layers * 12 * C * C


def _quantized_bytes(config: ModelConfig, precision: str) -> int:
    """Bytes of the head, which has 8 bits either way, and of the matrices."""
    head, matrices = _multiplied(config)
    return int(head * PRECISIONS["int8"].bytes + matrices * PRECISIONS[precision].bytes)


def kv_cache_bytes(config: ModelConfig, precision: str, tokens: int, samples: int = 1) -> int:
    """Bytes of keys and values: 2 · L · C numbers per token.

    With int8 or int4 weights they have 8 bits, each of 2 · L · H vectors is filled up to a multiple
    of 16 and has an fp32 scale.
    """
    L, C, H = config.n_layers, config.emb_dim, config.n_heads
    if PRECISIONS[precision].is_quantized:
        width: float = H * (math.ceil(config.head_dim / 16) * 16 + _FP32)
    else:
        width = C * PRECISIONS[precision].bytes
    return int(2 * L * width) * tokens * samples


def step_weight_bytes(config: ModelConfig, precision: str, samples: int = 1) -> int:
    """Bytes of weights that decoding one token per sample must read.

    Each is read once for all samples: the whole token embedding, as it is the head too, and
    one row of the position embedding. With int8 or int4 the head is quantized to 8 bits; the
    samples' rows of the embeddings, biases and norms are read in fp32.
    """
    C, (head, matrices) = config.emb_dim, _multiplied(config)
    counts = parameters(config)
    vectors = sum(counts.values()) - head - matrices - counts["position embedding"] + C
    if not PRECISIONS[precision].is_quantized:
        return int((head + matrices + vectors) * PRECISIONS[precision].bytes)
    return _quantized_bytes(config, precision) + (vectors + samples * C) * _FP32


def working_bytes(config: ModelConfig, tokens: int, samples: int = 1) -> int:
    """Bytes of activations while a prompt is read, at the widest point, in fp32.

    A layer's feed-forward (4 C · T) before and after its GELU, and the logits of every
    sample. All samples share a prompt; once the context is full, each is read again.
    """
    rows = samples if tokens >= config.context_length else 1
    return 2 * _FP32 * (rows * 4 * config.emb_dim * tokens + samples * config.vocab_size)


def inference_bytes(
    config: ModelConfig,
    precision: str,
    tokens: int | None = None,
    samples: int = 1,
    *,
    cached: str | None = None,
) -> int:
    """Weights, KV cache and working memory for `tokens` (the whole context by default).

    `cached` is the precision of the KV cache, if it is not that of the weights.
    """
    tokens = min(tokens or config.context_length, config.context_length)
    return (
        weight_bytes(config, precision)
        + kv_cache_bytes(config, cached or precision, tokens, samples)
        + working_bytes(config, tokens, samples)
    )


def search_bytes(config: ModelConfig, beams: int) -> int:
    """Bytes that beam search needs in addition to decoding `beams` rows.

    Each of B · V scores takes up to four copies in fp32, two counts of 8 bytes and three masks.
    """
    return beams * config.vocab_size * (4 * _FP32 + 2 * 8 + 3)


def sampling_bytes(config: ModelConfig, samples: int) -> int:
    """Bytes that choosing the next tokens takes in addition to the logits.

    Sorting and summing copies each of B · V logits into up to six numbers of 8 bytes.
    """
    return samples * config.vocab_size * 6 * 8


def training_bytes(
    config: ModelConfig,
    batch_size: int = 1,
    precision: str = "fp32",
    *,
    trained: int | None = None,
    checkpointing: bool = False,
    shards: int = 1,
) -> int:
    """Bytes to train with AdamW on so many sequences of the whole context at once.

    Each weight takes 4 bytes, and each that is `trained` (all by default) 8 more for its moments
    and 4 for its gradient, which takes the place of activations. Logits are computed by parts.
    Of several `shards` each has its part; whole are the embeddings, and two blocks with their
    gradients and what these are sent in.
    """
    T, C, V = config.context_length, config.emb_dim, config.vocab_size
    total = total_parameters(config)
    trained = total if trained is None else trained
    lora = trained < total
    # Those of the head come first, when all activations are there.
    at_first = activation_bytes(
        config, batch_size, precision, lora=lora, checkpointing=checkpointing
    )
    at_first += min(_LOGITS, 2 * _FP32 * batch_size * T * V)
    at_first += 0 if lora else _FP32 * V * C
    head, matrices = _multiplied(config)
    weights = _FP32 * total
    if precision != "fp32":  # of which products take copies; LoRA keeps matrices as such
        weights += _FP32 // 2 * (head - matrices if lora else total)
    whole = _FP32 * ((V + T) * C + 6 * 12 * C * C) if shards > 1 else 0
    return (weights + 8 * trained) // shards + whole + max(at_first, _FP32 * trained // shards)


def activation_bytes(
    config: ModelConfig,
    batch_size: int = 1,
    precision: str = "fp32",
    *,
    lora: bool = False,
    checkpointing: bool = False,
) -> int:
    """Bytes that a training step keeps of the way forward, but for logits.

    Each layer keeps 16.5 · T · C numbers where attention is fused, and two dropout masks of a byte
    each: what Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, count as 34 bytes in half
    precision. LoRA of all matrices has a mask for the input of each (7 · T · C bytes). With
    `checkpointing` that is one layer, and of the others what goes into them. With bf16 norms and
    the residual stream stay in fp32.
    """
    layer, L = 16.5 + (2 + 7 * lora) / _FP32, config.n_layers
    layers = layer + L + 3 if checkpointing else layer * L
    width = _FP32 if precision == "fp32" else 2.4
    return int(width * batch_size * config.context_length * config.emb_dim * layers)


def flops_per_token(config: ModelConfig, context: int = 0) -> int:
    """Floating-point operations to read one token after `context` others.

    Two for each weight of a matrix, the head's included (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1), and 4 · C per layer for each token attended to:
    its key and its value are a product each (Hoffmann et al. 2022, arXiv:2203.15556,
    appendix F).
    """
    L, C = config.n_layers, config.emb_dim
    return 2 * (12 * L * C * C + config.vocab_size * C) + 4 * L * C * (context + 1)


def training_flops_per_token(config: ModelConfig) -> int:
    """Forward and backward, which is twice forward; attention at half the context on average."""
    return 3 * flops_per_token(config, config.context_length // 2)


def gpus_needed(config: ModelConfig, precision: str = "bf16") -> int:
    """The number of 80 GB GPUs that the weights and one full KV cache fill."""
    return math.ceil(inference_bytes(config, precision) / _H100_MEMORY)


@dataclass(frozen=True, slots=True)
class History:
    """What the papers say about training; None where they do not."""

    year: int
    training_tokens: int | None
    training_text: str
    source: str


HISTORY = {
    # Section 2.1 gives WebText as some 8 million documents, 40 GB; neither the paper nor the
    # release says how many tokens were seen in training.
    "gpt2": History(2019, None, "WebText, 40 GB", "Radford et al. 2019, section 2.1"),
    # The caption of table 2.1 gives the tokens seen, table 2.2 where they are from.
    "gpt3-175B": History(
        2020, 300_000_000_000, "Common Crawl, WebText2, books, Wikipedia", "arXiv:2005.14165"
    ),
}


def history(name: str) -> History | None:
    """What is published about a model, by its config's name; the four sizes share a paper."""
    return HISTORY.get("gpt2" if name in ("124M", "355M", "774M", "1558M") else name)


def describe(config: ModelConfig) -> dict[str, object]:
    """All of the above for one model, as plain numbers: bytes, counts, operations."""
    return {
        "config": {f.name: getattr(config, f.name) for f in fields(config)},
        "parameters": {
            **{re.sub(r"\W", "_", name): count for name, count in parameters(config).items()},
            "total": total_parameters(config),
            "total_untied": total_parameters(config, tied=False),
        },
        "memory": {
            precision: {
                "weights": weight_bytes(config, precision),
                "kv_cache_per_token": kv_cache_bytes(config, precision, 1),
                "kv_cache": kv_cache_bytes(config, precision, config.context_length),
                "inference": inference_bytes(config, precision),
            }
            for precision in SHOWN
        },
        "training_memory": training_bytes(config),
        "flops_per_token": flops_per_token(config),
        "flops_per_token_full_context": flops_per_token(config, config.context_length - 1),
        "training_flops_per_token": training_flops_per_token(config),
        "gpus_needed": gpus_needed(config),
    }
