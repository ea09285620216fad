"""Two models on one text, against PyTorch's own cross entropy and KL divergence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import ScriptedDecoder, modelled, random_model

from gpt2cli.analysis import comparison
from gpt2cli.analysis.comparison import Difference
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer

IDS = torch.randint(0, 300, (24,), generator=torch.Generator().manual_seed(2)).tolist()
SIZE = 290  # of a vocabulary smaller than the model's


def decoders(model: GPT2) -> list[Decoder]:
    """Of all kinds, with a vocabulary of `SIZE`."""
    weights = {name: p.numpy() for name, p in model.named_parameters()}
    made: list[Decoder] = [
        TorchDecoder(model, size=SIZE),
        NumpyDecoder(model.config, weights, size=SIZE),
    ]
    if native.available():
        from gpt2cli.decoders.native.decoder import EngineDecoder

        made.append(EngineDecoder(model.config, weights, size=SIZE))
    return made


@pytest.fixture(scope="module")
def models(tiny_config: ModelConfig) -> tuple[GPT2, GPT2]:
    """Two that agree here and there."""
    a = random_model(tiny_config)
    b = random_model(tiny_config)
    b.blocks[1].feed_forward.down.weight.data += 0.1 * torch.randn(
        b.blocks[1].feed_forward.down.weight.shape, generator=torch.Generator().manual_seed(3)
    )
    return a, b


def test_surprisal_kl_and_ranks_are_those_of_pytorch_on_every_decoder(
    models: tuple[GPT2, GPT2],
) -> None:
    ids = [i % SIZE for i in IDS]
    with torch.inference_mode():
        log_p, log_q = (
            m(torch.tensor([ids]))[0, :, :SIZE].double().log_softmax(-1) for m in models
        )
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1) / math.log(2)
    for a, b in zip(*map(decoders, models), strict=True):
        found = list(comparison.compare(a, b, ids))
        assert [d.token for d in found] == [*ids[1:], None]
        assert [d.kl for d in found] == pytest.approx(kl.tolist(), abs=1e-4)
        assert found[-1].surprisals is None
        for log, side in ((log_p, 0), (log_q, 1)):
            nats = F.nll_loss(log[:-1], torch.tensor(ids[1:]), reduction="none")
            ours = [d.surprisals[side] for d in found if d.surprisals is not None]
            assert ours == pytest.approx((nats / math.log(2)).tolist(), abs=1e-4)
            assert [d.choices[side] for d in found] == log.argmax(-1).tolist()
        for t, d in enumerate(found):
            order_p, order_q = (log[t].argsort(descending=True).tolist() for log in (log_p, log_q))
            assert d.ranks == (
                1 + order_q.index(d.choices[0]),
                1 + order_p.index(d.choices[1]),
            )
    assert 0 < sum(d.choices[0] == d.choices[1] for d in found) < len(found)


def test_a_model_does_not_differ_from_itself(models: tuple[GPT2, GPT2]) -> None:
    found = list(comparison.compare(modelled(models[0]), modelled(models[0]), IDS))
    assert all(d.kl == 0 and d.ranks == (1, 1) for d in found)


def test_a_long_text_is_read_in_blocks_and_leaves_nothing_behind() -> None:
    """Logits of all tokens at once may be gigabytes."""
    a, b = (
        ScriptedDecoder(lambda _, text, i=i: np.eye(257)[(len(text) * i) % 257]) for i in (1, 2)
    )
    ids = [i % 257 for i in range(200)]
    found = list(comparison.compare(a, b, ids))
    assert [d.choices for d in found] == [(t % 257, 2 * t % 257) for t in range(1, 201)]
    for decoder in (a, b):
        chunks = [chunk for chunks in decoder.reads for chunk in chunks]
        assert [token for chunk in chunks for token in chunk.ids] == ids
        assert max(len(chunk.ids) for chunk in chunks) <= comparison.BLOCK
        assert decoder.free_pages == decoder.pages


def test_a_summary_by_hand() -> None:
    differences = [
        Difference(5, (1.0, 2.0), 0.5, (5, 5), (1, 1)),
        Difference(6, (3.0, 5.0), 0.1, (6, 7), (2, 3)),
        Difference(None, None, 0.0, (8, 8), (1, 1)),
    ]
    summary = comparison.summarise(differences)
    assert summary.surprisals == (2.0, 3.5)
    assert summary.mean_kl == pytest.approx(0.2)
    assert (summary.agreement, summary.places) == (pytest.approx(2 / 3), 3)
    assert comparison.summarise(differences[2:]).surprisals is None


def test_vocabularies_must_be_equal_token_by_token(
    tiny_tokenizer: Tokenizer, tiny_directory: Path
) -> None:
    again = Tokenizer.load(tiny_directory)
    comparison.check_same_vocabulary(["a", "b"], [tiny_tokenizer, again])
    ranks, special = again._ranks, again._special
    swapped = {**ranks, b"a": ranks[b"b"], b"b": ranks[b"a"]}
    with pytest.raises(UsageError, match="a has 300 tokens, b has 300"):
        comparison.check_same_vocabulary(["a", "b"], [tiny_tokenizer, Tokenizer(swapped, special)])


def test_models_of_different_shapes_can_be_compared(tiny_config: ModelConfig) -> None:
    a = random_model(tiny_config)
    b = random_model(replace(tiny_config, n_layers=1, context_length=16, qkv_bias=False))
    found = list(comparison.compare(modelled(a), modelled(b), IDS[:16]))
    assert len(found) == 16
    assert all(d.kl > 0 for d in found)
