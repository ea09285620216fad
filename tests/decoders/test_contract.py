"""What every decoder promises, held to the model without a cache.

A sequence is a text of its own; what one decoder says after it, all say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MakeDecoder, decoders, modelled, random_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.pages import PAGE, Chunk, OutOfPages
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.weights import checkpoint

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
CONTEXT = 100


@pytest.fixture(scope="module")
def paged_model() -> GPT2:
    """A model with a context of several pages, the last of them not full."""
    return random_model(ModelConfig(300, CONTEXT, emb_dim=48, n_heads=3, n_layers=2))


@pytest.fixture(scope="module")
def paged_directory(paged_model: GPT2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint."""
    directory = tmp_path_factory.mktemp("paged")
    checkpoint.save(paged_model, directory, 0, torch.float32)
    return directory


def maker(kind: str, directory: Path, model: GPT2) -> MakeDecoder:
    """What makes a decoder of the model, of a kind, with room for `tokens` tokens."""
    if kind == "scripted":
        return lambda tokens=None: modelled(model, tokens)
    if kind == "cuda":
        on_gpu = checkpoint.load(directory, device="cuda")
        return lambda tokens=None: TorchDecoder(on_gpu, tokens)
    return decoders(kind, directory)


@pytest.fixture(scope="module", params=["torch", "numpy", "native", "scripted", CUDA])
def make(request: pytest.FixtureRequest, paged_directory: Path, paged_model: GPT2) -> MakeDecoder:
    """What makes a decoder of each kind."""
    return maker(request.param, paged_directory, paged_model)


def assert_near(logits: Any, expected: Any, atol: float = 1e-4) -> None:
    """Ten times as far apart on a GPU, which adds up in another order."""
    found, wanted = torch.as_tensor(logits), torch.as_tensor(expected).cpu()
    assert found.shape == wanted.shape
    assert np.allclose(found.cpu(), wanted, atol=10 * atol if found.is_cuda else atol)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    """Three texts that fill the context."""
    return torch.randint(0, 300, (3, CONTEXT), generator=torch.Generator().manual_seed(0))


def test_a_prompt_and_steps_say_what_the_model_says(
    make: MakeDecoder, paged_model: GPT2, texts: torch.Tensor
) -> None:
    """Texts of different lengths side by side, token by token to the end of the context."""
    expected = [paged_model(text[None])[0] for text in texts]
    decoder: Decoder = make(tokens=12 * PAGE)
    held = {decoder.open(): (i, n) for i, n in enumerate((10, 1, 40))}
    ids = {s: texts[i].tolist() for s, (i, _) in held.items()}
    logits = decoder.read([Chunk(s, 0, ids[s][:n]) for s, (_, n) in held.items()])
    while True:
        for row, (i, n) in zip(logits, held.values(), strict=True):
            assert_near(row, expected[i][n - 1])
        held = {s: (i, n + 1) for s, (i, n) in held.items() if n < CONTEXT}
        if not held:
            break
        logits = decoder.read([Chunk(s, n - 1, ids[s][n - 1 : n]) for s, (_, n) in held.items()])
    assert decoder.context_length == CONTEXT


def test_every_asks_for_the_logits_after_each_token(
    make: MakeDecoder, paged_model: GPT2, texts: torch.Tensor
) -> None:
    """In pieces of any length, beside chunks that do not ask."""
    expected = paged_model(texts)
    decoder = make(tokens=12 * PAGE)
    a, b = decoder.open(), decoder.open()
    begin = 0
    for T in (7, 1, 60, 32):
        end = begin + T
        chunks = [
            Chunk(a, begin, texts[0, begin:end].tolist(), every=True),
            Chunk(b, begin, texts[1, begin:end].tolist()),
        ]
        logits = decoder.read(chunks)
        assert_near(logits[:T], expected[0, begin:end])
        assert_near(logits[T:], expected[1, end - 1 : end])
        begin = end


def test_a_smaller_start_forgets_what_lies_behind(make: MakeDecoder, paged_model: GPT2) -> None:
    decoder = make()
    s = decoder.open()
    decoder.read([Chunk(s, 0, list(range(70)))])
    for start in (50, 64, 3, 0):
        ids = [*range(start), 9, 8]
        expected = paged_model(torch.tensor([ids]))[:, -1]
        assert_near(decoder.read([Chunk(s, start, [9, 8])]), expected)
        decoder.read([Chunk(s, 0, list(range(70)))])


def test_logits_do_not_change_when_the_next_step_is_computed(make: MakeDecoder) -> None:
    decoder = make()
    s = decoder.open()
    decoder.read([Chunk(s, 0, [1, 2, 3])])
    first = decoder.read([Chunk(s, 3, [4])])
    kept = torch.as_tensor(first).clone()
    decoder.read([Chunk(s, 4, [5])])
    assert torch.equal(torch.as_tensor(first), kept)


def test_forks_share_pages_and_part_where_they_differ(make: MakeDecoder, paged_model: GPT2) -> None:
    prompt = list(range(40))
    decoder = make(tokens=10 * PAGE)
    parent = decoder.open()
    decoder.read([Chunk(parent, 0, prompt)])
    before = decoder.free_pages
    a, b = decoder.fork(parent), decoder.fork(parent)
    assert decoder.free_pages == before
    for t in range(3):
        logits = decoder.read([Chunk(s, 40 + t, [s + t]) for s in (parent, a, b)])
        for row, s in zip(logits, (parent, a, b), strict=True):
            text = prompt + [s + i for i in range(t + 1)]
            assert_near(row, paged_model(torch.tensor([text]))[0, -1])
    assert decoder.free_pages == before - 2  # the page that is not full, once more for each fork
    for s in (parent, a, b):
        decoder.close(s)
    assert decoder.free_pages == decoder.pages


def test_a_common_beginning_is_read_once(make: MakeDecoder, paged_model: GPT2) -> None:
    prompt = list(range(2, 80))
    decoder = make(tokens=10 * PAGE)
    first, second = decoder.open(), decoder.open()
    assert decoder.share(first, prompt) == 0
    decoder.read([Chunk(first, 0, prompt)])
    other = [*prompt[:70], 1, 1, 1]
    assert decoder.share(second, other) == 64
    logits = decoder.read([Chunk(second, 64, other[64:])])
    assert_near(logits, paged_model(torch.tensor([other]))[:, -1])
    decoder.close(first)
    decoder.close(second)
    third = decoder.open()  # after all have gone, too
    assert decoder.share(third, prompt) == 64
    assert_near(
        decoder.read([Chunk(third, 64, prompt[64:])]), paged_model(torch.tensor([prompt]))[:, -1]
    )


def test_too_few_pages_change_nothing(make: MakeDecoder, paged_model: GPT2) -> None:
    decoder = make(tokens=3 * PAGE)
    a, b = decoder.open(), decoder.open()
    decoder.read([Chunk(a, 0, list(range(40)))])
    with pytest.raises(OutOfPages):
        decoder.read([Chunk(a, 40, [7]), Chunk(b, 0, list(range(40)))])
    logits = decoder.read([Chunk(a, 40, [7]), Chunk(b, 0, list(range(30)))])
    for row, text in zip(logits, ([*range(40), 7], [*range(30)]), strict=True):
        assert_near(row, paged_model(torch.tensor([text]))[0, -1])


@pytest.mark.parametrize(
    "chunk", [Chunk(0, 1, [1]), Chunk(0, 0, []), Chunk(0, 0, [1] * (CONTEXT + 1))]
)
def test_a_wrong_chunk_is_refused(make: MakeDecoder, chunk: Chunk) -> None:
    decoder = make(tokens=12 * PAGE)
    assert decoder.open() == 0
    with pytest.raises(ValueError, match=r"start|continue|empty|exceed"):
        decoder.read([chunk])


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_sequence_of_calls_says_what_the_model_says(
    make: MakeDecoder, paged_model: GPT2, data: st.DataObject
) -> None:
    """Chunks of any size for any sequences, forks, truncations, closings and shared beginnings."""
    decoder = make(tokens=12 * PAGE)
    held: dict[int, list[int]] = {}
    stem = list(range(100, 100 + CONTEXT))
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["open", "fork", "close", "read", "read"]))
        if action == "open":
            s = decoder.open()
            held[s] = stem[: decoder.share(s, stem)]
        elif action == "fork" and held:
            parent = data.draw(st.sampled_from(sorted(held)))
            held[decoder.fork(parent)] = [*held[parent]]
        elif action == "close" and held:
            s = data.draw(st.sampled_from(sorted(held)))
            decoder.close(s)
            del held[s]
        elif action == "read" and held:
            read_some(decoder, held, stem, paged_model, data)
    for s in held:
        decoder.close(s)
    assert decoder.free_pages == decoder.pages


def read_some(
    decoder: Decoder,
    held: dict[int, list[int]],
    stem: list[int],
    model: GPT2,
    data: st.DataObject,
) -> None:
    """One call with a chunk for each of some sequences, compared with the model."""
    chunks = []
    for s in data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, unique=True)):
        start = data.draw(st.integers(0, min(len(held[s]), CONTEXT - 1)))
        count = data.draw(st.integers(1, CONTEXT - start))
        own = data.draw(st.booleans())
        ids = [s + 1] * count if own else stem[start : start + count]
        chunks.append(Chunk(s, start, ids, data.draw(st.booleans())))
    try:
        logits = decoder.read(chunks)
    except OutOfPages:
        return
    expected = []
    for chunk in chunks:
        held[chunk.sequence] = [*held[chunk.sequence][: chunk.start], *chunk.ids]
        every = model(torch.tensor([held[chunk.sequence]]))[0]
        expected.append(every[chunk.start if chunk.every else -1 :])
    assert_near(logits, torch.cat(expected))
