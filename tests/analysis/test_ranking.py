"""Alternatives weighed, against model.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import BYTES, MakeDecoder, ScriptedDecoder, by_text

from gpt2cli.analysis import ranking
from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

CONTEXT = 32  # of the tiny model


def test_a_choice_weighs_what_the_text_gains(
    make: MakeDecoder, tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    """The log-probability of the whole, less that of what all have in common."""
    context, choices = "ROMEO: But so", ["ft, what light", " the sun", "!"]
    rows, shared = ranking.encode(tiny_tokenizer, context, choices, CONTEXT)
    assert [tiny_tokenizer.decode(row) for row in rows] == [context + c for c in choices]
    found = ranking.rank_choices(make(tokens=128), rows, shared, choices)
    model = checkpoint.load(tiny_directory)
    rows_of = dict(zip(choices, rows, strict=True))
    for choice in found:
        row = rows_of[choice.text]
        scores = model(torch.tensor([row]))[0, :-1].double().log_softmax(-1)
        expected = sum(float(scores[t - 1, row[t]]) for t in range(shared, len(row)))
        assert choice.log_probability == pytest.approx(expected, abs=1e-4)
        assert choice.per_token == pytest.approx(expected / (len(row) - shared), abs=1e-4)
        assert choice.per_byte == pytest.approx(expected / len(choice.text), abs=1e-4)
    assert {choice.text for choice in found} == set(choices)
    weights = [math.exp(choice.log_probability) for choice in found]
    assert weights == sorted(weights, reverse=True)
    assert [choice.share for choice in found] == pytest.approx([w / sum(weights) for w in weights])


def test_choices_without_a_context_begin_from_end_of_text(tiny_tokenizer: Tokenizer) -> None:
    rows, shared = ranking.encode(tiny_tokenizer, "", ["a", "b"], CONTEXT)
    assert shared == 1
    assert {row[0] for row in rows} == {tiny_tokenizer.end_of_text}


def test_a_long_context_loses_its_beginning_and_a_long_choice_is_refused() -> None:
    rows, shared = ranking.encode(BYTES, "x" * 40 + "yz", ["ab", "c"], 8)
    assert [bytes(row) for row in rows] == [b"xxxxyzab", b"xxxxyzc"]
    assert shared == 6
    with pytest.raises(UsageError, match="longer than the model's context"):
        ranking.encode(BYTES, "x", ["a" * 8, "b"], 8)
    with pytest.raises(UsageError, match="must not be empty"):
        ranking.encode(BYTES, "x", ["a", ""], 8)


def test_a_context_is_read_once_and_the_room_for_one_row_is_enough() -> None:
    context, choices = "x" * 75, ["a", "bcd" * 10, "b", "xyz" * 11, "c"]
    rows, shared = ranking.encode(BYTES, context, choices, 200)
    roomy = ScriptedDecoder(by_text, 200)
    expected = ranking.rank_choices(roomy, rows, shared, choices, block=20)
    assert roomy.tokens_read == 75 - 1 + sum(map(len, choices))
    assert max(sum(len(chunk.ids) for chunk in chunks) for chunks in roomy.reads) == 20
    assert len(roomy.reads) == 4 + 4  # of the context, and of all choices side by side
    for tokens in (108, 128, 160):
        decoder = ScriptedDecoder(by_text, 200, tokens)
        assert ranking.rank_choices(decoder, rows, shared, choices, block=20) == expected
        assert decoder.free_pages == decoder.pages
