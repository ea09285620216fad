"""Kinds of heads: patterns that are known, and transformers' attentions, scored by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BYTES, random_model
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import heads
from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer

N = 5  # different tokens
T = 1 + heads.COPIES * N


def pattern(*looks: tuple[int, int]) -> NDArray:
    """Attention (T, T) of a head whose token at `looks[0]` attends to that at `looks[1]` alone."""
    made = np.zeros((T, T))
    for query, key in looks:
        made[query, key] = 1
    return made


def test_a_head_that_does_one_thing_alone_scores_one_in_that() -> None:
    induction = pattern(*((i, i - N + 1) for i in range(1 + N, T)))
    two_copies_back = pattern(*((i, i - 2 * N + 1) for i in range(1 + 2 * N, T)))
    previous = pattern(*((i, i - 1) for i in range(1, T)))
    first = pattern(*((i, 0) for i in range(1, T)))
    attention = np.stack([induction, two_copies_back, previous, first])[None]
    found = heads.scores(attention, N, begin=1)
    assert found[0, 0] == pytest.approx([1, 2 / 3, 0, 0])  # two thirds have a copy so far back
    assert found[1, 0] == pytest.approx([0, 0, 1, 1 / (T - 1)])
    assert found[2, 0] == pytest.approx([0, 0, 1 / (T - 1), 1])


def test_scores_are_those_of_transformers_attentions(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, tiny_directory: Path
) -> None:
    """The tiny model's context of 32 has room for four times 7 tokens."""
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory, attn_implementation="eager").eval()
    found = heads.score_heads(tiny_model, tiny_tokenizer, seed=3, texts=2)
    assert (found.texts, found.tokens) == (2, 29)
    sums = np.zeros((3, 2, 3))
    for ids in heads.random_texts(tiny_tokenizer, 3, 2, 7):
        text = [tiny_tokenizer.end_of_text, *ids * 4]
        with torch.inference_mode():
            attentions = theirs(torch.tensor([text]), output_attentions=True).attentions
        for layer, weights in enumerate(attentions):
            for head in range(3):
                a = weights[0, head].tolist()
                copied = [
                    sum(a[i][j + 1] for j in range(1, i) if text[j] == text[i])
                    for i in range(8, 29)
                ]
                sums[0, layer, head] += np.mean(copied)
                sums[1, layer, head] += np.mean([a[i][i - 1] for i in range(1, 29)])
                sums[2, layer, head] += np.mean([a[i][0] for i in range(1, 29)])
    ours = np.stack([found.induction, found.previous, found.first])
    assert np.allclose(ours, sums / 2, atol=1e-5)


def test_texts_are_of_different_tokens_and_the_same_for_a_seed(tiny_tokenizer: Tokenizer) -> None:
    texts = list(heads.random_texts(tiny_tokenizer, 1, 20, 25))
    assert texts == list(heads.random_texts(tiny_tokenizer, 1, 20, 25))
    assert texts != list(heads.random_texts(tiny_tokenizer, 2, 20, 25))
    assert all(len(set(text)) == 25 for text in texts)
    assert tiny_tokenizer.end_of_text not in {i for text in texts for i in text}
    assert len({tuple(text) for text in texts}) == 20


def test_heads_are_named_by_layer_and_head_and_sorted() -> None:
    scores = np.array([[0.1, 0.9], [0.5, 0.2]])
    found = heads.HeadScores(scores, scores * 0, scores * 0, 1, 5)
    assert found.of_kind("induction", 0.2) == {"0.1": 0.9, "1.0": 0.5, "1.1": 0.2}
    assert found.named(0.6) == {"induction": {"0.1": 0.9}, "previous": {}, "first": {}}


def test_a_context_that_holds_no_repetition_is_told() -> None:
    short = random_model(ModelConfig(257, 8, emb_dim=8, n_heads=2, n_layers=1))
    with pytest.raises(UsageError, match="a context of 8 is too short"):
        heads.score_heads(short, BYTES)
