"""Scores against transformers and model.py: windows, ranks, batches."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import MakeDecoder
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import scoring
from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

CONTEXT = 32  # of the tiny model
SINGLE = {bytes([i]): i for i in range(256)}
BYTES_300 = Tokenizer(SINGLE | {b"%d" % i: i for i in range(256, 300)}, {})


@pytest.fixture(scope="module")
def theirs(tiny_directory: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(tiny_directory).eval()


def some_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 300, (length,), generator=generator).tolist()


def score_alone(decoder: Any, ids: list[int], stride: int) -> scoring.Score:
    (score,) = scoring.join(scoring.score_texts(decoder, BYTES_300, [ids], stride=stride))
    return score


@torch.no_grad()
def sliding_loss(model: Any, ids: list[int], stride: int) -> float:
    """Mean nats per token, by the recipe of transformers' guide to perplexity."""
    total, before = 0.0, 0
    for start in range(0, len(ids), stride):
        end = min(start + CONTEXT, len(ids))
        window = torch.tensor([ids[start:end]])
        labels = window.clone()
        labels[:, : -(end - before)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        total += float(model(window, labels=labels).loss) * scored if scored else 0.0
        before = end
        if end == len(ids):
            break
    return total / (len(ids) - 1)


@pytest.mark.parametrize(
    ("length", "stride"), [(2, 16), (32, 16), (33, 16), (100, 16), (100, 5), (100, 31), (63, 31)]
)
def test_the_loss_is_that_of_transformers(
    make: MakeDecoder, theirs: Any, length: int, stride: int
) -> None:
    ids = some_ids(length)
    score = score_alone(make(), ids, stride)
    expected = sliding_loss(theirs, ids, stride)
    mean = score.summary.bits_per_token
    assert mean is not None
    assert mean * math.log(2) == pytest.approx(expected, abs=1e-4)
    assert score.summary.perplexity == pytest.approx(math.exp(expected), rel=1e-3)
    assert score.summary.tokens == length - 1
    assert np.isnan(score.bits[0])


def test_bits_and_ranks_are_those_of_the_model(make: MakeDecoder, tiny_directory: Path) -> None:
    ids = some_ids(CONTEXT)
    score = score_alone(make(), ids, 16)
    logits = checkpoint.load(tiny_directory)(torch.tensor([ids]))[0, :-1].double()
    targets = torch.tensor(ids[1:])
    expected = F.cross_entropy(logits, targets, reduction="none") / math.log(2)
    assert np.allclose(score.bits[1:], expected.numpy(), atol=1e-4)
    order = logits.argsort(descending=True)
    ranks = (order == targets[:, None]).nonzero()[:, 1] + 1
    assert score.ranks.tolist() == [0, *ranks.tolist()]


def test_texts_side_by_side_score_as_each_alone(
    make: MakeDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "GROUP", 4)
    texts = [some_ids(length, seed=length) for length in (5, 70, 1, 32, 2, 9, 33, 0, 12)]
    advanced: list[int] = []
    together = scoring.score_texts(
        make(batch_size=3), BYTES_300, texts, stride=16, batch_size=3, advance=advanced.append
    )
    for ids, score in zip(texts, scoring.join(together), strict=True):
        alone = score_alone(make(), ids, 16)
        assert np.allclose(score.bits, alone.bits, atol=1e-4, equal_nan=True)
        assert score.ranks.tolist() == alone.ranks.tolist()
    assert sum(advanced) == sum(max(0, len(ids) - 1) for ids in texts)


def test_stretches_come_in_order_and_none_is_longer_than_the_context(make: MakeDecoder) -> None:
    texts = [some_ids(length, seed=length) for length in (100, 3, 70)]
    found = list(scoring.score_texts(make(), BYTES_300, texts, stride=20))
    for i, ids in enumerate(texts):
        assert [token for text, score in found if text == i for token in score.ids] == ids
    assert [text for text, _ in found] == sorted(text for text, _ in found)
    assert max(len(score.ids) for _, score in found) <= CONTEXT
    total = sum((score.summary for _, score in found), scoring.Summary(0, 0, 0))
    whole = [score.summary for score in scoring.join(found)]
    assert total.tokens == sum(summary.tokens for summary in whole) == 170
    assert total.bits == pytest.approx(sum(summary.bits for summary in whole))
    assert total.size == sum(len(BYTES_300.decode_bytes(ids[1:])) for ids in texts)


@pytest.mark.parametrize(("batch_size", "block"), [(1, 3), (2, 64), (3, 1), (4, 1000)])
def test_blocks_and_windows_side_by_side_change_nothing(
    make: MakeDecoder, batch_size: int, block: int
) -> None:
    ids = some_ids(100)  # 8 windows, so that batches are full or not
    expected = score_alone(make(), ids, 10)
    found = scoring.score_texts(
        make(batch_size=batch_size), BYTES_300, [ids], stride=10, batch_size=batch_size, block=block
    )
    (score,) = scoring.join(found)
    assert np.allclose(score.bits, expected.bits, atol=1e-4, equal_nan=True)
    assert score.ranks.tolist() == expected.ranks.tolist()


@given(length=st.integers(0, 200), context=st.integers(2, 40), data=st.data())
def test_windows_cover_every_token_but_the_first_once(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context - 1))
    plan = list(scoring.windows(length, context, stride))
    assert [t for w in plan for t in range(w.first, w.end)] == list(range(1, length))
    for w in plan:
        assert w.begin < w.first < w.end <= w.begin + context
    for w, following in pairwise(plan):
        assert following.begin == w.begin + stride
        # What is new sees as much as the stride leaves of a full window.
        assert following.first - following.begin == context - stride


def test_strides_that_leave_tokens_out_are_refused() -> None:
    scoring.check_stride(31, 32)
    for stride in (0, -1, 32):
        with pytest.raises(UsageError, match="from 1 to 31"):
            scoring.check_stride(stride, 32)


def test_figures_by_hand() -> None:
    bits = np.array([np.nan, 1, 3], dtype=np.float32)
    score = scoring.Score([65, 66, 67], bits, np.array([0, 1, 2]), 4)
    summary = score.summary + scoring.Summary(1, 4, 2)
    assert (summary.tokens, summary.bits_per_token, summary.bits_per_byte) == (3, 2, 0.75)
    assert summary.perplexity == 4
    assert scoring.Summary(0, 0, 0).perplexity is None
    assert scoring.Summary(0, 0, 0).bits_per_byte is None
    assert scoring.Summary(1, 1, 1e9).perplexity is not None  # not an overflow


def test_logits_on_another_device_score_the_same() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 700, 30)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 30, (2, 700))
    expected = scoring._surprisal(logits, targets)
    found = scoring._surprisal(torch.from_numpy(logits), targets)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens() -> None:
    bits, ranks = scoring.surprisal(np.zeros((2, 64), dtype=np.float32), np.array([0, 63]))
    assert bits.tolist() == pytest.approx([6, 6])
    assert ranks.tolist() == [1, 1]
