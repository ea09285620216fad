"""Scores against transformers and model.py: windows, ranks, batches, alternatives."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt2cli import checkpoint, engine, heatmap, scoring
from gpt2cli.engine.decoder import EngineDecoder
from gpt2cli.errors import UsageError
from gpt2cli.numpy_decoder import NumpyDecoder
from gpt2cli.tokenizer import Tokenizer
from gpt2cli.torch_decoder import TorchDecoder

CONTEXT = 32  # of the tiny model
SINGLE = {bytes([i]): i for i in range(256)}
BYTES = Tokenizer(SINGLE, {"<|endoftext|>": 256})
BYTES_300 = Tokenizer(SINGLE | {b"%d" % i: i for i in range(256, 300)}, {})


@pytest.fixture(scope="module", params=["torch", "numpy", "engine"])
def make(request: pytest.FixtureRequest, tiny_directory: Path) -> Any:
    config, tensors = checkpoint.read(tiny_directory)
    if request.param == "torch":
        return partial(TorchDecoder, checkpoint.load(tiny_directory))
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    if request.param == "numpy":
        return partial(NumpyDecoder, config, weights)
    if not engine.available():
        pytest.skip(engine.why_not())
    return partial(EngineDecoder, config, weights)


@pytest.fixture(scope="module")
def theirs(tiny_directory: Path) -> Any:
    return GPT2LMHeadModel.from_pretrained(tiny_directory).eval()


def some_ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 300, (length,), generator=generator).tolist()


def score_alone(decoder: Any, ids: list[int], stride: int) -> scoring.Score:
    (score,) = scoring.join(scoring.stretches(decoder, BYTES_300, [ids], stride=stride))
    return score


@torch.no_grad()
def sliding_loss(model: Any, ids: list[int], stride: int) -> float:
    """Mean nats a token, by the recipe of transformers' guide to perplexity."""
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
def test_the_loss_is_that_of_transformers(make: Any, theirs: Any, length: int, stride: int) -> None:
    ids = some_ids(length)
    score = score_alone(make(), ids, stride)
    expected = sliding_loss(theirs, ids, stride)
    mean = score.summary.bits_per_token
    assert mean is not None
    assert mean * math.log(2) == pytest.approx(expected, abs=1e-4)
    assert score.summary.perplexity == pytest.approx(math.exp(expected), rel=1e-3)
    assert score.summary.tokens == length - 1
    assert np.isnan(score.bits[0])


def test_bits_and_ranks_are_those_of_the_model(make: Any, tiny_directory: Path) -> None:
    ids = some_ids(CONTEXT)
    score = score_alone(make(), ids, 16)
    logits = checkpoint.load(tiny_directory)(torch.tensor([ids]))[0, :-1].double()
    targets = torch.tensor(ids[1:])
    expected = F.cross_entropy(logits, targets, reduction="none") / math.log(2)
    assert np.allclose(score.bits[1:], expected.numpy(), atol=1e-4)
    order = logits.argsort(descending=True)
    ranks = (order == targets[:, None]).nonzero()[:, 1] + 1
    assert score.ranks.tolist() == [0, *ranks.tolist()]


def test_texts_side_by_side_score_as_each_alone(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "GROUP", 4)
    texts = [some_ids(length, seed=length) for length in (5, 70, 1, 32, 2, 9, 33, 0, 12)]
    advanced: list[int] = []
    together = scoring.stretches(
        make(batch_size=3), BYTES_300, texts, stride=16, batch_size=3, advance=advanced.append
    )
    for ids, score in zip(texts, scoring.join(together), strict=True):
        alone = score_alone(make(), ids, 16)
        assert np.allclose(score.bits, alone.bits, atol=1e-4, equal_nan=True)
        assert score.ranks.tolist() == alone.ranks.tolist()
    assert sum(advanced) == sum(max(0, len(ids) - 1) for ids in texts)


def test_stretches_come_in_order_and_none_is_longer_than_the_context(make: Any) -> None:
    texts = [some_ids(length, seed=length) for length in (100, 3, 70)]
    found = list(scoring.stretches(make(), BYTES_300, texts, stride=20))
    for i, ids in enumerate(texts):
        assert [token for text, score in found if text == i for token in score.ids] == ids
    assert [text for text, _ in found] == sorted(text for text, _ in found)
    assert max(len(score.ids) for _, score in found) <= CONTEXT
    total = sum((score.summary for _, score in found), scoring.Summary(0, 0, 0))
    whole = [score.summary for score in scoring.join(found)]
    assert total.tokens == sum(summary.tokens for summary in whole) == 170
    assert total.bits == pytest.approx(sum(summary.bits for summary in whole))
    assert total.size == sum(len(BYTES_300.decode_bytes(ids[1:])) for ids in texts)


def test_blocks_of_logits_change_nothing(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = some_ids(100)
    whole = score_alone(make(), ids, 10)
    monkeypatch.setattr(scoring, "BLOCK", 3)
    blocks = score_alone(make(), ids, 10)
    assert np.allclose(whole.bits, blocks.bits, atol=1e-4, equal_nan=True)


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


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens() -> None:
    bits, ranks = scoring.surprisal(np.zeros((2, 64), dtype=np.float32), np.array([0, 63]))
    assert bits.tolist() == pytest.approx([6, 6])
    assert ranks.tolist() == [1, 1]


# Alternatives.


def test_a_choice_weighs_what_the_text_gains(
    make: Any, tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    """The log-probability of the whole, less that of what all have in common."""
    context, choices = "ROMEO: But so", ["ft, what light", " the sun", "!"]
    rows, shared = scoring.encode_choices(tiny_tokenizer, context, choices, CONTEXT)
    assert [tiny_tokenizer.decode(row) for row in rows] == [context + c for c in choices]
    found = scoring.weigh(make(batch_size=2), rows, shared, choices, batch_size=2)
    model = checkpoint.load(tiny_directory)
    for choice, row in zip(found, rows, strict=True):
        scores = model(torch.tensor([row]))[0, :-1].double().log_softmax(-1)
        expected = sum(float(scores[t - 1, row[t]]) for t in range(shared, len(row)))
        assert choice.log_probability == pytest.approx(expected, abs=1e-4)
        assert choice.per_token == pytest.approx(expected / (len(row) - shared), abs=1e-4)
        assert choice.per_byte == pytest.approx(expected / len(choice.text), abs=1e-4)
    assert [choice.text for choice in found] == choices


def test_choices_without_a_context_begin_from_end_of_text(tiny_tokenizer: Tokenizer) -> None:
    rows, shared = scoring.encode_choices(tiny_tokenizer, "", ["a", "b"], CONTEXT)
    assert shared == 1
    assert {row[0] for row in rows} == {tiny_tokenizer.end_of_text}


def test_a_long_context_loses_its_beginning_and_a_long_choice_is_refused() -> None:
    rows, shared = scoring.encode_choices(BYTES, "x" * 40 + "yz", ["ab", "c"], 8)
    assert [bytes(row) for row in rows] == [b"xxxxyzab", b"xxxxyzc"]
    assert shared == 6
    with pytest.raises(UsageError, match="longer than the model's context"):
        scoring.encode_choices(BYTES, "x", ["a" * 8, "b"], 8)
    with pytest.raises(UsageError, match="must not be empty"):
        scoring.encode_choices(BYTES, "x", ["a", ""], 8)


# What is shown.


def score_of(ids: list[int]) -> scoring.Score:
    bits = np.array([np.nan, *range(1, len(ids))], dtype=np.float32)
    return scoring.Score(ids, bits, np.arange(len(ids)), 0)


@given(st.text(min_size=1, max_size=20), st.integers(0, 3))
def test_pieces_are_whole_characters_that_add_up(text: str, cut: int) -> None:
    data = text.encode()[cut:] or b"?"
    shown = list(heatmap.pieces(BYTES, score_of(list(data))))
    assert "".join(piece.text for piece in shown) == data.decode("utf-8", "replace")
    assert all(piece.text for piece in shown)
    if len(shown) > 1 and all(piece.bits is not None for piece in shown[1:]):
        later = sum(piece.bits or 0 for piece in shown[1:])
        first = len(data) - len("".join(p.text for p in shown[1:]).encode())
        if "\ufffd" not in data.decode("utf-8", "replace"):
            assert later == sum(range(first, len(data)))


@pytest.mark.parametrize(
    ("bits", "rank", "expected"),
    [(0.5, 10, (0, 0)), (1, 11, (1, 1)), (7.9, 100, (3, 1)), (8, 101, (4, 2)), (99, 1001, (5, 3))],
)
def test_classes_begin_at_their_limits(bits: float, rank: int, expected: tuple[int, int]) -> None:
    assert heatmap.classes(heatmap.Piece("x", bits, rank)) == expected
    assert heatmap.classes(heatmap.Piece("x", None, 0)) == (None, None)


def test_a_page_escapes_everything() -> None:
    evil = "</pre><script>alert(1)</script>&\"'"
    page = heatmap.page(evil, [(evil, [heatmap.Piece(evil, 1.5, 3)])])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4  # title, heading above all, heading, text
