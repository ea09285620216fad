"""What every decoder promises, held to the model without a cache.

A row is a text of its own; what one decoder says after it, all say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import MakeDecoder, decoders, modelled

from gpt2cli.decoders.checked import CheckedDecoder
from gpt2cli.decoders.prefix_cache import PrefixCache
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.weights import checkpoint

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
OF_MANY_ROWS = ["torch", "numpy", "native", "scripted", "checked", CUDA]


def maker(kind: str, directory: Path, model: GPT2) -> MakeDecoder:
    """What makes a decoder of the tiny model, of a kind."""
    if kind == "scripted":
        return lambda batch_size=1: modelled(model, batch_size)
    if kind == "checked":
        return lambda batch_size=1: CheckedDecoder(decoders("numpy", directory)(batch_size), 300)
    if kind == "prefix cache":
        return lambda: PrefixCache(decoders("numpy", directory)())
    if kind == "cuda":
        on_gpu = checkpoint.load(directory, device="cuda")
        return lambda batch_size=1: TorchDecoder(on_gpu, batch_size)
    return decoders(kind, directory)


@pytest.fixture(scope="module", params=OF_MANY_ROWS)
def make(request: pytest.FixtureRequest, tiny_directory: Path, tiny_model: GPT2) -> MakeDecoder:
    return maker(request.param, tiny_directory, tiny_model)


@pytest.fixture(scope="module", params=[*OF_MANY_ROWS, "prefix cache"])
def make_one(request: pytest.FixtureRequest, tiny_directory: Path, tiny_model: GPT2) -> MakeDecoder:
    """Where one row is enough."""
    return maker(request.param, tiny_directory, tiny_model)


def assert_near(logits: Any, expected: Any, atol: float = 1e-4) -> None:
    """Ten times as far apart on a GPU, which adds up in another order."""
    found, wanted = torch.as_tensor(logits), torch.as_tensor(expected).cpu()
    assert found.shape == wanted.shape
    assert np.allclose(found.cpu(), wanted, atol=10 * atol if found.is_cuda else atol)


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    """Three texts that fill the context of 32."""
    return torch.randint(0, 300, (3, 32), generator=torch.Generator().manual_seed(0))


def test_a_prompt_and_steps_say_what_the_model_says(
    make: MakeDecoder, tiny_model: GPT2, texts: torch.Tensor
) -> None:
    expected = tiny_model(texts)
    decoder = make(batch_size=3)
    assert_near(decoder.prefill(texts[:, :10].tolist()), expected[:, 9])
    for t in range(10, 32):
        assert_near(decoder.step(texts[:, t].tolist()), expected[:, t])
    assert decoder.length == decoder.context_length == 32


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_extending_gives_the_logits_after_every_token(
    make: MakeDecoder, tiny_model: GPT2, texts: torch.Tensor, rows: int
) -> None:
    """In pieces of any length, after a prompt or from nothing, for all rows or the first few."""
    ids = texts[:rows]
    expected = tiny_model(ids)
    decoder = make(batch_size=3)
    decoder.prefill([[5, 6, 7]])
    decoder.truncate(0)
    begin = 0
    for T in (7, 1, 20, 4):
        assert_near(
            decoder.extend(ids[:, begin : begin + T].tolist()), expected[:, begin : begin + T]
        )
        begin += T
    assert decoder.length == 32
    decoder.truncate(10)
    assert_near(decoder.extend(ids[:, 10:20].tolist()), expected[:, 10:20])


def test_one_row_is_read_in_any_way(
    make_one: MakeDecoder, tiny_model: GPT2, texts: torch.Tensor
) -> None:
    ids = texts[:1]
    expected = tiny_model(ids)
    decoder: Decoder = make_one()
    assert (decoder.length, decoder.context_length) == (0, 32)
    assert_near(decoder.prefill(ids[:, :3].tolist()), expected[:, 2])
    assert_near(decoder.step(ids[:, 3].tolist()), expected[:, 3])
    assert_near(decoder.extend(ids[:, 4:9].tolist()), expected[:, 4:9])
    assert decoder.length == 9
    assert_near(decoder.prefill(ids[:, :12].tolist()), expected[:, 11])
    assert decoder.length == 12


def test_a_prefill_forgets_all_that_was_read(
    make_one: MakeDecoder, tiny_model: GPT2, texts: torch.Tensor
) -> None:
    decoder = make_one()
    for text in texts[:, :6]:
        assert_near(decoder.prefill([text.tolist()]), tiny_model(text[None])[:, -1])
        assert decoder.length == 6


def test_what_is_truncated_is_forgotten(make_one: MakeDecoder, tiny_model: GPT2) -> None:
    decoder = make_one()
    decoder.prefill([[1, 2, 3, 4, 5]])
    decoder.truncate(7)  # more than there is
    assert decoder.length == 5
    decoder.truncate(3)
    assert decoder.length == 3
    assert_near(decoder.step([9]), tiny_model(torch.tensor([[1, 2, 3, 9]]))[:, -1], 1e-5)


def test_logits_do_not_change_when_the_next_step_is_computed(make_one: MakeDecoder) -> None:
    decoder = make_one()
    decoder.prefill([[1, 2, 3]])
    first = decoder.step([4])
    kept = torch.as_tensor(first).clone()
    decoder.step([5])
    assert torch.equal(torch.as_tensor(first), kept)


def test_a_prompt_for_the_whole_batch_is_read_as_if_repeated(make: MakeDecoder) -> None:
    one, three = make(batch_size=3), make(batch_size=3)
    assert_near(one.prefill([[7, 8, 9]]), three.prefill([[7, 8, 9]] * 3), 1e-5)
    assert_near(one.step([1, 2, 3]), three.step([1, 2, 3]), 1e-5)


def test_reordered_rows_are_continued(make: MakeDecoder) -> None:
    rows = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    decoder, expected = make(batch_size=3), make(batch_size=3)
    decoder.prefill(rows)
    decoder.reorder([2, 0, 0])
    expected.prefill([rows[2], rows[0], rows[0]])
    assert_near(decoder.step([10, 11, 12]), expected.step([10, 11, 12]), 1e-5)
