"""Decoding steps in fixed shapes: against the model without a cache, and as recordings.

No GPU is needed. In place of a CUDA graph, `record` traces the step down to PyTorch's basic
operations on the very tensors it ran on, with every number that came from Python frozen into
the trace, and repeats those: as a graph does, it goes wrong if anything but data changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import random_model
from torch.fx.experimental.proxy_tensor import make_fx

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import graphs, native, opening
from gpt2cli.decoders.graphs import CudaGraphs, Repeated
from gpt2cli.decoders.pages import PAGE, Chunk
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system.device import Placement

CONTEXT = 3 * PAGE - 6  # the last bucket is not full
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def model() -> GPT2:
    return random_model(ModelConfig(120, CONTEXT, emb_dim=24, n_heads=3, n_layers=2))


@pytest.fixture(autouse=True)
def _short_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BUCKET", PAGE)


class Recorder:
    """Stands in for `CudaGraphs`; counts its recordings."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recordings += 1
        return make_fx(compute)()


def recording(model: GPT2, tokens: int = 8 * 3 * PAGE) -> tuple[TorchDecoder, Recorder]:
    """A decoder on the CPU that records its steps, and what counts the recordings."""
    decoder, recorder = TorchDecoder(model, tokens), Recorder()
    decoder._step = Repeated(decoder._logits_of_one, decoder.device, recorder)
    return decoder, recorder


def random_ids(*shape: int) -> list[Any]:
    found: list[Any] = torch.randint(0, 120, shape).tolist()
    return found


def opened(decoder: TorchDecoder, *lengths: int) -> dict[int, list[int]]:
    """New sequences and their texts, of which all but the last token have been read."""
    texts = {decoder.open(): random_ids(n) for n in lengths}
    if chunks := [Chunk(s, 0, text[:-1]) for s, text in texts.items() if len(text) > 1]:
        decoder.read(chunks)
    return texts


def assert_step(decoder: TorchDecoder, texts: dict[int, list[int]], within: float = 1e-4) -> None:
    """Read the last token of each sequence's text, and compare with the model without a cache."""
    chunks = [Chunk(s, len(text) - 1, text[-1:]) for s, text in texts.items()]
    for row, text in zip(torch.as_tensor(decoder.read(chunks)), texts.values(), strict=True):
        expected = decoder.model(torch.tensor([text], device=decoder.device))[0, -1].to(row)
        assert (row - expected).abs().max() <= within * expected.abs().max(), len(text)


@pytest.mark.parametrize(("lengths", "recordings"), [([1], 3), ([1, 21, 41], 2)])
def test_every_length_equals_the_model_without_a_cache(
    model: GPT2, lengths: list[int], recordings: int
) -> None:
    """Texts come to the end of a page, and to that of a bucket, each at its own time."""
    decoder, recorder = recording(model)
    texts = opened(decoder, *lengths)
    while True:
        assert_step(decoder, texts)
        if max(map(len, texts.values())) == CONTEXT:
            break
        texts = {s: [*text, *random_ids(1)] for s, text in texts.items()}
    assert recorder.recordings == recordings


def test_the_longest_text_decides_how_many_tokens_are_attended_to(model: GPT2) -> None:
    decoder, recorder = recording(model)
    texts = opened(decoder, 3, PAGE + 1)
    (short, _), (long, _) = texts.items()
    assert_step(decoder, {short: texts[short]})
    assert_step(decoder, texts)
    assert_step(decoder, {long: texts[long]})
    assert recorder.recordings == 3  # one row and one page, two rows and two, one row and two
    assert_step(decoder, dict(reversed(texts.items())))
    assert recorder.recordings == 3


def test_batches_share_recordings_of_the_next_power_of_two(model: GPT2) -> None:
    decoder, recorder = recording(model)
    texts = opened(decoder, *range(5, 14))
    for rows, recordings in ((3, 1), (4, 1), (9, 2), (5, 3), (8, 3), (2, 4), (1, 5), (3, 5)):
        assert_step(decoder, dict(list(texts.items())[:rows]))
        assert recorder.recordings == recordings, rows


def test_recordings_serve_again_after_going_back_and_for_other_texts(model: GPT2) -> None:
    decoder, recorder = recording(model)
    ((s, text),) = opened(decoder, 60).items()
    for length in range(30, 61):
        assert_step(decoder, {s: text[:length]})
    assert recorder.recordings == 2
    for length in (41, 32, 31, 7):
        assert_step(decoder, {s: [*text[:length], (text[length] + 1) % 120]})
        decoder.read([Chunk(s, 0, text)])
    decoder.close(s)
    assert_step(decoder, opened(decoder, 50))
    assert recorder.recordings == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_in_half_precision_a_step_differs_by_rounding_only(
    model: GPT2, dtype: torch.dtype, device: str
) -> None:
    decoder = TorchDecoder(random_model(model.config).to(device, dtype), 9 * PAGE)
    texts = opened(decoder, 2, 33, 70)
    assert_step(decoder, texts, 0.05)


def test_a_step_can_be_repeated_without_effect(model: GPT2) -> None:
    """As it is before a recording."""
    decoder = TorchDecoder(model)
    s = decoder.open()
    decoder.read([Chunk(s, 0, random_ids(6))])
    inputs = torch.tensor([[3, 6, 6, 0]])  # an id, its position, its slot, a page
    first = decoder._logits_of_one(inputs)
    kept = decoder._cache.kv.clone()
    assert torch.equal(decoder._logits_of_one(inputs), first)
    assert torch.equal(decoder._cache.kv, kept)


def test_rows_that_fill_up_a_batch_leave_no_trace(model: GPT2) -> None:
    decoder, _ = recording(model)
    texts = opened(decoder, 40, 40, 40, 40, 40)
    kept = decoder._cache.kv.clone()
    assert_step(decoder, dict(list(texts.items())[:3]))
    changed = (decoder._cache.kv != kept).any(dim=-1).any(dim=0).nonzero()[:, 0].tolist()
    places = [decoder._pages.table(s)[1] * PAGE + 39 % PAGE for s in list(texts)[:3]]
    assert changed == [*sorted(places), decoder._cache.scrap]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_what_others_left_in_a_page_has_no_influence(model: GPT2, device: str) -> None:
    """Not even what is not finite: it stays in a page when the text that caused it has gone."""
    decoder = TorchDecoder(random_model(model.config).to(device), 4 * 3 * PAGE)
    decoder._cache.kv[:, : decoder.pages * PAGE] = torch.nan
    assert_step(decoder, opened(decoder, 5, 40, 1), 1e-3)


def stop_at(monkeypatch: pytest.MonkeyPatch, backend: Callable[[Any, Any], Any]) -> None:
    """Let `backend` do what torch.compile hands to a compiler."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step: compile_(step, backend=backend))
    torch._dynamo.reset()


def test_the_decoder_compiles_one_shape(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def backend(graph: Any, examples: Any) -> Any:
        shapes.append(len(examples))
        return graph.forward

    stop_at(monkeypatch, backend)
    decoder = TorchDecoder(model, 6 * PAGE, compiled=True)
    texts = opened(decoder, CONTEXT - 1, CONTEXT)
    for length in (6, 7, PAGE, PAGE + 1, CONTEXT, 9):
        assert_step(decoder, {s: text[:length] for s, text in texts.items()})
        decoder.read([Chunk(s, 0, text) for s, text in texts.items()])
    assert len(shapes) == 1


def test_a_failing_compiler_is_told_in_one_sentence(
    model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(graph: Any, examples: Any) -> Any:
        raise RuntimeError("no C++ compiler\nsecond line")

    stop_at(monkeypatch, backend)
    decoder = TorchDecoder(model, compiled=True)
    s = decoder.open()
    decoder.read([Chunk(s, 0, [1, 2])])
    with pytest.raises(
        GPT2CLIError, match=r"torch\.compile failed, leave out compile: no C\+\+ compiler$"
    ):
        decoder.read([Chunk(s, 2, [3])])


@pytest.mark.parametrize("placement", [Placement("cpu", "fp32"), Placement("mps", "fp32")], ids=str)
def test_compiling_is_refused_where_it_makes_no_sense(placement: Placement) -> None:
    with pytest.raises(UsageError, match=f"^compile .* not on {placement.device} in fp32"):
        opening.check_compile(placement)


def test_compiling_is_accepted_where_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    opening.check_compile(Placement("cuda:1", "fp32"))
    monkeypatch.setattr(native, "_load", lambda: "it was not built")
    opening.check_compile(Placement("cpu", "bf16"))


@pytest.mark.gpu
def test_cuda_graphs_equal_the_model(model: GPT2) -> None:
    decoder = TorchDecoder(random_model(model.config).cuda(), 4 * 3 * PAGE)
    assert decoder._step is not None
    assert isinstance(decoder._step._record, CudaGraphs)
    texts = opened(decoder, 1, 21, 41)
    while max(map(len, texts.values())) < CONTEXT:
        assert_step(decoder, texts, 1e-3)
        texts = {s: [*text, *random_ids(1)] for s, text in texts.items()}
    assert_step(decoder, {s: text[:9] for s, text in texts.items()}, 1e-3)
