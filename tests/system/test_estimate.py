"""Sizes and costs against the built model and against calculations by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import needs_engine, random_model

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec, shipped_specs
from gpt2cli.decoders.native import quantize
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.kv_cache import CacheView, KVCache
from gpt2cli.model.lora import add_lora
from gpt2cli.system import estimate
from gpt2cli.weights.names import parameter_shapes

SHIPPED = {spec.name: spec.model for spec in shipped_specs()}
SMALL = SHIPPED["124M"]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_parameters_are_those_of_the_model_when_built(name: str, qkv_bias: bool) -> None:
    config = replace(SHIPPED[name], qkv_bias=qkv_bias)
    with torch.device("meta"):
        model = GPT2(config)
    assert estimate.total_parameters(config) == sum(p.numel() for p in model.parameters())
    by_component = {
        "token embedding": sum(p.numel() for p in model.token_embedding.parameters()),
        "position embedding": sum(p.numel() for p in model.position_embedding.parameters()),
    }
    for component, part in (("attention", "attention"), ("feed-forward", "feed_forward")):
        named = model.named_parameters()
        by_component[component] = sum(p.numel() for name, p in named if part in name)
    named = model.named_parameters()
    by_component["layer norms"] = sum(p.numel() for name, p in named if "norm" in name)
    assert estimate.parameters(config) == by_component


def test_published_totals() -> None:
    assert estimate.total_parameters(SMALL) == 124_439_808
    assert estimate.total_parameters(SMALL, tied=False) == 163_037_184
    # GPT-3's paper rounds to 175.0 billion.
    assert estimate.total_parameters(SHIPPED["gpt3-175B"]) == pytest.approx(175e9, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_and_cache_bytes_are_what_torch_allocates(dtype: torch.dtype) -> None:
    config = ModelConfig(vocab_size=300, context_length=64, emb_dim=48, n_heads=4, n_layers=3)
    precision = "fp32" if dtype == torch.float32 else "bf16"
    model = GPT2(config).to(dtype)
    allocated = sum(p.nbytes for p in model.parameters())
    assert estimate.weight_bytes(config, precision) == allocated
    cache = KVCache(config, slots=60, dtype=dtype)
    allocated = cache.kv[:, :60].nbytes
    assert estimate.kv_cache_bytes(config, precision, tokens=20, samples=3) == allocated
    assert cache.kv.nbytes - allocated == estimate.kv_cache_bytes(config, precision, tokens=2)


@needs_engine
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_coded_weights_and_cache_are_what_the_engine_reads(precision: str) -> None:
    config = ModelConfig(vocab_size=320, context_length=64, emb_dim=64, n_heads=4, n_layers=3)
    weights = {name: p.numpy() for name, p in random_model(config).named_parameters()}
    codes = quantize.encode(config, weights, precision)
    quantized = sum(code.nbytes for code in codes.values())
    others = sum(w.nbytes for name, w in weights.items() if name not in codes)
    assert estimate.weight_bytes(config, precision) == quantized + others
    vectors = sum(w.nbytes for w in weights.values() if w.ndim == 1)
    rows = 2 * 64 * 4  # one of each embedding, in fp32
    read = quantized + vectors + rows
    assert estimate.step_weight_bytes(config, precision) == read

    decoder = EngineDecoder(config, weights, 2 * 64, precision=precision, codes=codes)
    held = sum(part.nbytes for part in vars(decoder._cache).values())
    assert estimate.kv_cache_bytes(config, precision, 64, samples=2) == held


def test_memory_of_124m_by_hand() -> None:
    assert estimate.weight_bytes(SMALL, "fp32") == 497_759_232  # "about 500 MB for inference"
    assert estimate.kv_cache_bytes(SMALL, "fp32", 1) == 2 * 12 * 768 * 4 == 73_728
    head, matrices = 50257 * 768, 12 * 12 * 768 * 768
    rest = (124_439_808 - head - matrices) * 4
    scales = head // 64 * 2, matrices // 64 * 2  # with 4 bits, twice as many of the matrices
    assert estimate.weight_bytes(SMALL, "int8") == head + matrices + sum(scales) + rest
    halved = head + matrices // 2 + scales[0] + 2 * scales[1]
    assert estimate.weight_bytes(SMALL, "int4") == halved + rest


def test_inference_needs_grow_with_tokens_samples_and_precision() -> None:
    needs = [estimate.inference_bytes(SMALL, p) for p in ("int8", "bf16", "fp32")]
    assert needs == sorted(needs)
    few, many = (estimate.inference_bytes(SMALL, "fp32", 100, s) for s in (1, 11))
    logits = 2 * 4 * 50257
    assert many - few == 10 * (100 * 73_728 + logits)
    assert estimate.inference_bytes(SMALL, "fp32", 5000) == estimate.inference_bytes(SMALL, "fp32")


def test_training_needs_weights_two_moments_and_gradients_or_activations() -> None:
    total = 124_439_808
    least = estimate.training_bytes(SMALL, 1, checkpointing=True)
    assert 16 * total <= least < 17 * total  # gradients take more than what is recomputed
    one, two, three = (estimate.training_bytes(SMALL, n) for n in (1, 2, 3))
    assert three - two == 17 * 12 * 1024 * 768 * 4
    logits, head = 200_000_000, 4 * 50257 * 768
    assert two == 12 * total + 2 * (three - two) + logits + head
    adapter = estimate.training_bytes(SMALL, 1, trained=1_179_648)
    assert adapter == 4 * total + 8 * 1_179_648 + 225 * 1024 * 768 * 4 + logits
    assert one > adapter
    half = estimate.training_bytes(SMALL, 2, "bf16")
    assert half == 14 * total + int(2.4 * 2 * 17 * 12 * 1024 * 768) + logits + head
    matrices = 12 * 12 * 768 * 768
    adapter = estimate.training_bytes(SMALL, 1, "bf16", trained=1_179_648)
    weights = 4 * total - 2 * matrices + head // 2
    kept = 2.4 * 225 * 1024 * 768
    assert adapter == pytest.approx(weights + 8 * 1_179_648 + kept + logits, abs=2)


@pytest.mark.parametrize("lora", [False, True])
def test_activations_are_what_autograd_keeps(lora: bool) -> None:
    """To within a tenth: norms keep their means too, and the first layer its embeddings."""
    config = ModelConfig(
        vocab_size=300, context_length=256, emb_dim=192, n_heads=12, n_layers=4, drop_rate=0.1
    )
    model = GPT2(config).init_weights().train()
    if lora:
        add_lora(model, LoraConfig())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(torch.zeros(1, 256, dtype=torch.long))
    measured = sum(storage.nbytes() for storage in kept.values())
    one, two = (
        estimate.training_bytes(config, n, trained=1000 if lora else None) for n in (10, 11)
    )
    logits = 2 * 4 * 256 * 300
    assert two - one - logits == pytest.approx(measured, rel=0.1)


def test_flops_are_two_for_each_weight_used_and_what_attention_adds() -> None:
    """Counted by torch on the real thing."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(vocab_size=300, context_length=64, emb_dim=48, n_heads=4, n_layers=3)
    model = GPT2(config).init_weights().eval()
    cache, slots = KVCache(config, slots=64), torch.arange(64)[None]
    # The counter sees the products of attention only where they are not fused.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        past, new, all_of_them = slots[:, :20], slots[:, 20:21], slots[:, :21]
        model(torch.zeros_like(past), CacheView(cache, past, past, past))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros_like(new), CacheView(cache, new, new, all_of_them))
    assert estimate.flops_per_token(config, context=20) == counter.get_total_flops()


def test_gpt3_needs_five_gpus_of_80_gb_and_gpt2_one() -> None:
    assert estimate.gpus_needed(SHIPPED["gpt3-175B"]) == 5  # 349 GB of weights, 10 of cache
    assert estimate.gpus_needed(SHIPPED["1558M"]) == 1


def test_the_names_of_parameters_are_known_without_torch(tiny_config: ModelConfig) -> None:
    for config in (tiny_config, replace(tiny_config, qkv_bias=False)):
        built = {n: tuple(p.shape) for n, p in GPT2(config).named_parameters()}
        assert parameter_shapes(config) == built


def test_find_spec_knows_gpt3() -> None:
    spec = find_spec("gpt3")
    assert spec is not None
    assert (spec.model.n_layers, spec.model.emb_dim, spec.model.head_dim) == (96, 12288, 128)


def test_step_bytes_of_124m_by_hand() -> None:
    head, blocks = 50257 * 768, 12 * 12 * 768 * 768
    rest = 124_439_808 - head - blocks - 1023 * 768  # with one row of the position embedding
    assert estimate.step_weight_bytes(SMALL, "fp32") == 4 * (head + blocks + rest)
    assert estimate.step_weight_bytes(SMALL, "bf16") == 2 * (head + blocks + rest)
    assert estimate.step_weight_bytes(SMALL, "fp32", 8) == estimate.step_weight_bytes(SMALL, "fp32")
    coded = (("int8", blocks + blocks // 32), ("int4", blocks // 2 + blocks // 16))
    for precision, code in coded:
        read = head + head // 32 + code + 4 * (rest + 3 * 768)
        assert estimate.step_weight_bytes(SMALL, precision, 3) == read
