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
from helpers import BYTES, MakeDecoder, ScriptedDecoder, by_text, decoders, needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import packing, scoring
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


def test_texts_side_by_side_score_as_each_alone(make: MakeDecoder) -> None:
    texts = [some_ids(length, seed=length) for length in (5, 70, 1, 32, 2, 9, 33, 0, 12)]
    advanced: list[int] = []
    together = scoring.score_texts(
        make(tokens=320), BYTES_300, texts, stride=16, advance=advanced.append
    )
    for ids, score in zip(texts, scoring.join(together), strict=True):
        alone = score_alone(make(), ids, 16)
        assert np.allclose(score.bits, alone.bits, atol=1e-4, equal_nan=True)
        assert score.ranks.tolist() == alone.ranks.tolist()
    assert sum(advanced) == sum(max(0, len(ids) - 1) for ids in texts)


@needs_engine
def test_the_engine_gives_a_text_the_same_bits_in_any_company(tiny_directory: Path) -> None:
    make = decoders("native", tiny_directory)
    texts = [some_ids(length, seed=length) for length in (40, 3, 70, 9, 33, 12, 2)]
    for tokens, block in ((32, 256), (320, 40), (3200, 1000)):
        together = scoring.score_texts(
            make(tokens=tokens), BYTES_300, texts, stride=10, block=block
        )
        for ids, score in zip(texts, scoring.join(together), strict=True):
            alone = score_alone(make(), ids, 10)
            assert score.bits.tobytes() == alone.bits.tobytes()
            assert score.ranks.tolist() == alone.ranks.tolist()


LENGTHS = st.lists(st.integers(0, 90), max_size=8)


@settings(deadline=None)
@given(lengths=LENGTHS, context=st.integers(2, 50), data=st.data())
def test_no_company_stride_block_or_room_changes_a_text(
    lengths: list[int], context: int, data: st.DataObject
) -> None:
    """Bitwise, with the least room and with plenty; and no sequence stays open."""
    stride = data.draw(st.integers(1, context - 1))
    texts = [some_ids(length, seed=i) for i, length in enumerate(lengths)]
    texts = [[token % BYTES.size for token in ids] for ids in texts]
    decoder = ScriptedDecoder(by_text, context, data.draw(st.integers(context, 10 * context)))
    block = data.draw(st.integers(1, 120))
    found = scoring.score_texts(decoder, BYTES, texts, stride=stride, block=block)
    for ids, score in zip(texts, scoring.join(found), strict=True):
        (alone,) = scoring.join(
            scoring.score_texts(ScriptedDecoder(by_text, context), BYTES, [ids], stride=stride)
        )
        assert score.ids == ids
        assert score.bits.tobytes() == alone.bits.tobytes()
        assert score.ranks.tolist() == alone.ranks.tolist()
    assert decoder.free_pages == decoder.pages
    assert all(sum(len(chunk.ids) for chunk in chunks) <= block for chunks in decoder.reads)


def test_texts_of_different_lengths_fill_every_block_but_the_last() -> None:
    lengths = (5, 90, 3, 33, 64, 2, 11)
    decoder = ScriptedDecoder(by_text, 100)
    texts = [[i % 256 for i in some_ids(length)] for length in lengths]
    list(scoring.score_texts(decoder, BYTES, texts, stride=50, block=16))
    sizes = [sum(len(chunk.ids) for chunk in chunks) for chunks in decoder.reads]
    assert sum(sizes) == sum(lengths) - len(lengths)  # no padding, and not the last token
    assert set(sizes[:-1]) == {16}


def test_what_only_precedes_is_read_without_its_logits() -> None:
    decoder = ScriptedDecoder(by_text, 40, 200)
    list(scoring.score_texts(decoder, BYTES, [list(range(100))], stride=10, block=25))
    asked = [chunk for chunks in decoder.reads for chunk in chunks if chunk.every]
    assert sum(len(chunk.ids) for chunk in asked) == 99
    silent = [chunk for chunks in decoder.reads for chunk in chunks if not chunk.every]
    assert sum(len(chunk.ids) for chunk in silent) == 6 * 29  # six windows after the first


def test_a_reader_that_leaves_early_leaves_nothing_open() -> None:
    decoder = ScriptedDecoder(by_text, 40, 400)
    texts = [list(range(length)) for length in (30, 100, 20, 60)]
    found = scoring.score_texts(decoder, BYTES, texts, stride=10, block=35)
    next(found)
    assert decoder.free_pages < decoder.pages
    found.close()  # type: ignore[attr-defined]
    assert decoder.free_pages == decoder.pages


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


@pytest.mark.parametrize(("tokens", "block"), [(32, 3), (64, 64), (96, 1), (320, 1000)])
def test_blocks_and_windows_side_by_side_change_nothing(
    make: MakeDecoder, tokens: int, block: int
) -> None:
    ids = some_ids(100)  # 8 windows, so that blocks are full or not
    expected = score_alone(make(), ids, 10)
    found = scoring.score_texts(make(tokens=tokens), BYTES_300, [ids], stride=10, block=block)
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
    logits = np.random.default_rng(0).standard_normal((1400, 30)).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, 30, 1400)
    expected = packing._surprisal(logits, targets)
    found = packing._surprisal(torch.from_numpy(logits), targets)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens() -> None:
    bits, ranks = packing.surprisal(np.zeros((2, 64), dtype=np.float32), np.array([0, 63]))
    assert bits.tolist() == pytest.approx([6, 6])
    assert ranks.tolist() == [1, 1]
