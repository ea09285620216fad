"""The model against its formulas, and against transformers with the same random weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import random_model
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2cli.config.model import ModelConfig
from gpt2cli.model.gpt2 import GELU, GPT2, LayerNorm, within_segments
from gpt2cli.model.kv_cache import CacheView, KVCache
from gpt2cli.weights import checkpoint
from gpt2cli.weights.names import hub_name


@pytest.fixture(scope="module")
def model(tiny_config: ModelConfig) -> GPT2:
    return random_model(tiny_config)


def ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_layer_norm_gives_zero_mean_and_unit_variance() -> None:
    x = torch.randn(4, 7, 64) * 5 + 3
    y = LayerNorm(64, eps=1e-5).formula(x)
    assert torch.allclose(y.mean(-1), torch.zeros(4, 7), atol=1e-5)
    assert torch.allclose(y.var(-1, correction=0), torch.ones(4, 7), atol=1e-4)


def test_layer_norm_by_hand() -> None:
    norm = LayerNorm(2, eps=0.75)
    norm.scale.data, norm.shift.data = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
    # mean 1.5, biased variance 0.25, √(0.25 + 0.75) = 1
    y = norm(torch.tensor([[1.0, 2.0]]))
    assert y.tolist() == [[-0.5 * 2 + 1, 0.5 * 3 - 1]]


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_fused_layer_norm_equals_its_formula(eps: float) -> None:
    norm = LayerNorm(48, eps)
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(3, 5, 48) * 10 - 4
    assert torch.allclose(norm(x), norm.formula(x), atol=1e-5)


def test_fused_gelu_equals_its_formula_and_the_tanh_form_by_hand() -> None:
    x = torch.linspace(-6, 6, 101)
    assert torch.allclose(GELU()(x), GELU().formula(x), atol=1e-6)
    by_hand = 0.5 * 1.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)))
    assert GELU()(torch.tensor(1.5)).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(vocab_size=300, context_length=64, emb_dim=48, n_heads=4, n_layers=3),
        ModelConfig(vocab_size=97, context_length=32, emb_dim=40, n_heads=1, n_layers=1),
        ModelConfig(300, 32, 24, n_heads=3, n_layers=2, layer_norm_eps=1e-3),
    ],
)
def test_logits_equal_those_of_transformers(config: ModelConfig, tmp_path: Path) -> None:
    ours = random_model(config)
    checkpoint.save(ours, tmp_path, end_of_text=0, dtype=torch.float32)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    x = torch.randint(0, config.vocab_size, (2, config.context_length))
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x).logits, atol=1e-4)


def test_without_qkv_bias_equals_transformers_with_zero_biases(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    ours = random_model(replace(tiny_config, qkv_bias=False))
    assert not any("qkv.bias" in name for name, _ in ours.named_parameters())
    checkpoint.save(ours, tmp_path, end_of_text=0, dtype=torch.float32)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        assert torch.allclose(ours(ids(2, 32)), theirs(ids(2, 32)).logits, atol=1e-4)


def test_gradients_equal_those_of_transformers(tiny_config: ModelConfig, tmp_path: Path) -> None:
    ours = random_model(replace(tiny_config, drop_rate=0.0)).requires_grad_(True).train()
    checkpoint.save(ours, tmp_path, end_of_text=0, dtype=torch.float32)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).train()
    x = ids(2, 32)
    loss = torch.nn.functional.cross_entropy(ours(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    reference = theirs(x, labels=x).loss
    loss.backward()  # type: ignore[no-untyped-call]
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), abs=1e-5)
    expected = {n.removeprefix("transformer."): p for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, expected[hub_name(name)].grad, atol=1e-4), name


@torch.inference_mode()
def test_no_token_sees_a_later_one(model: GPT2) -> None:
    x = ids(1, 20)
    changed = x.clone()
    changed[0, 12:] = (changed[0, 12:] + 1) % 300
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :12], b[:, :12])
    assert not torch.allclose(a[:, 12:], b[:, 12:])


LENGTHS = [[5, 1, 11, 3], [20], [7, 13]]
SEGMENTS = torch.stack(
    [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in LENGTHS]
)


def test_segments_are_attended_to_from_their_own_beginning() -> None:
    positions, mask = within_segments(torch.tensor([[0, 0, 2, 2, 2], [1, 2, 2, 3, 3]]))
    assert positions.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]]
    seen = [[row.nonzero()[:, 0].tolist() for row in sequence[0]] for sequence in mask]
    assert seen[0] == [[0], [0, 1], [2], [2, 3], [2, 3, 4]]
    assert seen[1] == [[0], [1], [1, 2], [3], [3, 4]]


@torch.inference_mode()
def test_documents_in_one_row_are_read_as_if_alone(model: GPT2) -> None:
    x = ids(3, 20)
    logits = model(x, segments=SEGMENTS)
    for row, tokens, lengths in zip(logits, x, LENGTHS, strict=True):
        alone = [model(part[None])[0] for part in tokens.split(lengths)]
        assert torch.allclose(row, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(logits[0], model(x[:1])[0], atol=1e-2)


def test_gradients_of_documents_in_one_row_are_those_of_each_alone(
    tiny_config: ModelConfig,
) -> None:
    packed, apart = (random_model(tiny_config).double().requires_grad_(True) for _ in range(2))
    x = ids(3, 21)
    learned = ids(3, 20, seed=5) % 3 > 0
    learned &= torch.cat([SEGMENTS[:, 1:] == SEGMENTS[:, :-1], torch.ones(3, 1) > 0], dim=1)

    def summed(model: GPT2, ids: torch.Tensor, own: torch.Tensor, **kwargs: torch.Tensor) -> None:
        logits = model(ids[:, :-1], **kwargs)
        loss = torch.nn.functional.cross_entropy(logits[own], ids[:, 1:][own], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]

    summed(packed, x, learned, segments=SEGMENTS)
    for tokens, own, lengths in zip(x, learned, LENGTHS, strict=True):
        begin = 0
        for length in lengths:
            end = begin + length
            summed(apart, tokens[None, begin : end + 1], own[None, begin:end])
            begin = end
    for (name, p), q in zip(packed.named_parameters(), apart.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.allclose(p.grad, q.grad, atol=1e-9), name


def view(
    cache: KVCache, slots: torch.Tensor, starts: list[int], count: int, attended: int = 32
) -> CacheView:
    """`count` new tokens per sequence, after `starts[i]` of sequence i, whose `slots` are row i."""
    positions = torch.tensor(starts)[:, None] + torch.arange(count)
    return CacheView(cache, positions, slots.gather(1, positions), slots[:, :attended])


@pytest.fixture
def cache(tiny_config: ModelConfig) -> KVCache:
    """Full of what others left there."""
    cache = KVCache(tiny_config, slots=70)
    cache.kv[:, :70] = torch.nan
    return cache


SLOTS = torch.randperm(70, generator=torch.Generator().manual_seed(3))[:64].view(2, 32)


@pytest.mark.parametrize("chunks", [[32], [1] * 32, [20, 1, 1, 10], [5, 9, 17, 1]])
@torch.inference_mode()
def test_cached_logits_equal_a_full_pass_for_any_chunking(
    model: GPT2, cache: KVCache, chunks: list[int]
) -> None:
    x = ids(2, 32)
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    for attended in ([start + T for start, T in zip(starts, chunks, strict=True)], [32] * 32):
        cache.kv[:, :70] = torch.nan
        pieces = [
            model(x[:, start : start + T], view(cache, SLOTS, [start, start], T, S))
            for start, T, S in zip(starts, chunks, attended, strict=False)
        ]
        assert torch.allclose(torch.cat(pieces, dim=1), model(x), atol=1e-5)


@torch.inference_mode()
def test_sequences_of_different_lengths_are_read_side_by_side(model: GPT2, cache: KVCache) -> None:
    x = ids(2, 32)
    model(x[:1, :20], view(cache, SLOTS[:1], [0], 20))
    model(x[1:, :7], view(cache, SLOTS[1:], [0], 7))
    new = torch.stack([x[0, 20:24], x[1, 7:11]])
    logits = model(new, view(cache, SLOTS, [20, 7], 4, 24))
    assert torch.allclose(logits[0], model(x[:1])[0, 20:24], atol=1e-5)
    assert torch.allclose(logits[1], model(x[1:])[0, 7:11], atol=1e-5)


@torch.inference_mode()
def test_nothing_but_the_slots_of_the_new_tokens_is_written(model: GPT2, cache: KVCache) -> None:
    cache.kv[:, :70] = 7.0
    x = ids(2, 3)
    model(x, view(cache, SLOTS, [0, 0], 3))
    changed = (cache.kv != 7).any(dim=-1).all(dim=0).nonzero()[:, 0].tolist()
    assert changed == sorted([*SLOTS[:, :3].flatten().tolist(), cache.null, cache.scrap])
    assert not cache.kv[:, cache.null].any()


def test_too_many_tokens_are_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match="33 tokens exceed a context of 32"):
        model(ids(1, 33))


def test_dropout_acts_in_training_only(tiny_config: ModelConfig) -> None:
    model = random_model(replace(tiny_config, drop_rate=0.5))
    x = ids(1, 16)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.allclose(model(x), model(x))


def test_initial_weights_follow_the_paper() -> None:
    config = ModelConfig(vocab_size=500, context_length=256, emb_dim=128, n_heads=4, n_layers=8)
    model = GPT2(config).init_weights(torch.Generator().manual_seed(0))
    expected = {
        "token_embedding.weight": 0.02,
        "position_embedding.weight": 0.01,
        "blocks.0.attention.qkv.weight": 0.02,
        "blocks.0.attention.out.weight": 0.02 / 4,  # √(2 · 8) = 4
        "blocks.7.feed_forward.up.weight": 0.02,
        "blocks.7.feed_forward.down.weight": 0.02 / 4,
    }
    for name, std in expected.items():
        assert model.get_parameter(name).std().item() == pytest.approx(std, rel=0.05), name
    assert torch.equal(model.final_norm.scale, torch.ones(128))
    assert not model.get_parameter("blocks.3.feed_forward.up.bias").any()
    loss = torch.nn.functional.cross_entropy(
        model(ids(4, 64))[:, :-1].flatten(0, 1), ids(4, 64)[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(math.log(500), rel=0.02)


def test_imported_names_are_transformers_names(tiny_config: ModelConfig) -> None:
    config = GPT2Config(n_embd=24, n_head=3, n_layer=2, vocab_size=300, n_positions=32)
    theirs = {n.removeprefix("transformer.") for n, _ in GPT2LMHeadModel(config).named_parameters()}
    assert {hub_name(n) for n, _ in GPT2(tiny_config).named_parameters()} == theirs
