"""The decoding step in fixed shapes: against the model without a cache, and as a recording.

No GPU is needed. In place of a CUDA graph, `record` traces the step down to PyTorch's basic
operations on the very tensors it ran on, with every number that came from Python frozen into
the trace, and repeats those: as a graph does, it goes wrong if anything but data changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_model
from torch.fx.experimental.proxy_tensor import make_fx

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import graphs, opening
from gpt2cli.decoders.graphs import CudaGraphs, GraphableStep
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.kv_cache import KVCache
from gpt2cli.system.device import Placement

CONTEXT = 24
STRIDE = 8


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_model(ModelConfig(120, CONTEXT, emb_dim=24, n_heads=3, n_layers=2))


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BUCKET", STRIDE)


class Recorder:
    """Stands in for `CudaGraphs`; counts its recordings."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recordings += 1
        return make_fx(compute)()


def prepared(
    model: GPT2, ids: torch.Tensor, capacity: int = CONTEXT, record: Any = None
) -> tuple[KVCache, GraphableStep]:
    cache = KVCache(model.config, ids.shape[0], capacity)
    model(ids, cache)
    return cache, GraphableStep(model, cache, record)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.inference_mode()
def test_every_length_equals_the_model_without_a_cache(
    model: GPT2, batch_size: int, recorded: bool
) -> None:
    rows = torch.randint(0, 120, (batch_size, CONTEXT))
    expected = model(rows)
    recorder = Recorder()
    cache, decode = prepared(model, rows[:, :1], record=recorder if recorded else None)
    for t in range(1, CONTEXT):
        logits = decode(rows[:, t].tolist())
        assert torch.allclose(logits, expected[:, t], atol=1e-5), t
        assert cache.length == t + 1
    if recorded:
        assert recorder.recordings == CONTEXT // STRIDE


@torch.inference_mode()
def test_recordings_serve_again_after_truncation_and_a_new_prompt(model: GPT2) -> None:
    rows = torch.randint(0, 120, (2, 20))
    recorder = Recorder()
    cache, decode = prepared(model, rows[:, :12], record=recorder)
    for t in range(12, 20):
        decode(rows[:, t].tolist())
    assert recorder.recordings == 2  # up to 16, and up to 24
    for length in (17, 16, 15, 7):
        cache.length = length
        changed = (rows[:, length] + 1) % 120
        expected = model(torch.cat([rows[:, :length], changed[:, None]], dim=1))[:, -1]
        assert torch.allclose(decode(changed.tolist()), expected, atol=1e-5), length
    assert recorder.recordings == 3
    cache.length = 0
    other = torch.randint(0, 120, (2, 14))
    model(other[:, :13], cache)
    expected = model(other)[:, -1]
    assert torch.allclose(decode(other[:, 13].tolist()), expected, atol=1e-5)
    assert recorder.recordings == 3


@torch.inference_mode()
def test_a_capacity_between_two_buckets_can_be_filled_and_no_more(model: GPT2) -> None:
    rows = torch.randint(0, 120, (1, 11))
    _, decode = prepared(model, rows[:, :9], capacity=11, record=Recorder())
    expected = model(rows)
    for t in (9, 10):
        assert torch.allclose(decode(rows[:, t].tolist()), expected[:, t], atol=1e-5)
    with pytest.raises(ValueError, match="12 tokens do not fit a KV cache of 11"):
        decode([1])


@torch.inference_mode()
def test_a_step_can_be_repeated_without_effect(model: GPT2) -> None:
    ids = torch.randint(0, 120, (2, 6))
    cache, _ = prepared(model, ids)
    inputs = torch.tensor([3, 4, 6])  # two ids, and their position
    first = graphs.static_step(model, cache, inputs, 8)
    kept = cache.keys.clone(), cache.values.clone()
    assert torch.equal(graphs.static_step(model, cache, inputs, 8), first)
    assert torch.equal(cache.keys, kept[0])
    assert torch.equal(cache.values, kept[1])
    assert cache.length == 6


@torch.inference_mode()
def test_slots_beyond_the_position_have_no_influence(model: GPT2) -> None:
    ids = torch.randint(0, 120, (1, 5))
    cache, decode = prepared(model, ids)
    expected = decode([7]).clone()
    cache.length = 5
    cache.keys[:, :, :, 5:] = 1e4
    cache.values[:, :, :, 5:] = -1e4
    assert torch.allclose(decode([7]), expected, atol=1e-6)


def test_the_decoder_compiles_one_shape(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def backend(graph: Any, examples: Any) -> Any:
        shapes.append(len(examples))
        return graph.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step: compile_(step, backend=backend))
    torch._dynamo.reset()
    rows = torch.randint(0, 120, (2, CONTEXT))
    expected = model(rows).numpy()
    decoder = TorchDecoder(model, 2, compiled=True)
    assert np.allclose(decoder.prefill(rows[:, :5].tolist()), expected[:, 4], atol=1e-5)
    for t in range(5, CONTEXT):
        assert np.allclose(decoder.step(rows[:, t].tolist()), expected[:, t], atol=1e-5)
    decoder.truncate(9)
    again = decoder.step(rows[:, 9].tolist())
    assert np.allclose(again, expected[:, 9], atol=1e-5)
    kept = again.copy()
    decoder.step(rows[:, 10].tolist())
    assert np.array_equal(again, kept)
    assert len(shapes) == 1


def test_a_failing_compiler_is_told_in_one_sentence(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: Any, examples: Any) -> Any:
        raise RuntimeError("no C++ compiler\nsecond line")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step: compile_(step, backend=backend))
    torch._dynamo.reset()
    decoder = TorchDecoder(model, compiled=True)
    decoder.prefill([[1, 2]])
    with pytest.raises(
        GPT2CLIError, match=r"torch\.compile failed, leave out compile: no C\+\+ compiler$"
    ):
        decoder.step([3])


@pytest.mark.parametrize("placement", [Placement("cpu", "fp32"), Placement("mps", "fp32")], ids=str)
def test_compiling_is_refused_where_it_makes_no_sense(placement: Placement) -> None:
    with pytest.raises(UsageError, match=f"^compile .* not on {placement.device} in fp32"):
        opening.check_compile(placement)


def test_compiling_is_accepted_on_gpus_and_in_half_precision() -> None:
    for placement in (Placement("cuda:1", "fp32"), Placement("cpu", "bf16")):
        opening.check_compile(placement)


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_graphs_equal_the_model(model: GPT2) -> None:
    on_gpu = random_model(model.config).cuda()
    rows = torch.randint(0, 120, (3, CONTEXT))
    expected = on_gpu(rows.cuda())
    decoder = TorchDecoder(on_gpu, 3)
    assert decoder._static is not None
    assert isinstance(decoder._static._record, CudaGraphs)
    decoder.prefill(rows[:, :5].tolist())
    for t in range(5, CONTEXT):
        logits = decoder.step(rows[:, t].tolist())
        assert torch.allclose(logits, expected[:, t], atol=1e-3), t
    decoder.truncate(9)
    assert torch.allclose(decoder.step(rows[:, 9].tolist()), expected[:, 9], atol=1e-3)
