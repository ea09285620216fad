"""The room that scoring asks for: enough to read side by side, and not more than memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import BYTES, ScriptedDecoder, by_text

from gpt2cli.analysis.scorer import CACHE_BYTES, Scorer
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import shipped_specs

SMALL = ModelConfig(BYTES.size, context_length=64, emb_dim=4, n_heads=1, n_layers=1)
SIZES = {spec.name: spec.model for spec in shipped_specs()}


@pytest.mark.parametrize("lengths", [[2] * 60, [70, 3, 64, 2, 200, 9], [40], []])
def test_with_the_room_asked_for_every_block_is_full(lengths: list[int]) -> None:
    texts = [[i % 256 for i in range(length)] for length in lengths]
    scorer = Scorer(SMALL, BYTES, stride=63, block=30)
    for tokens in (scorer.cache_tokens(texts), scorer.cache_tokens()):
        decoder = ScriptedDecoder(by_text, 64, tokens)
        found = list(scorer.score_texts(decoder, texts))
        assert {text for text, _ in found} == set(range(len(texts)))
        sizes = [sum(len(chunk.ids) for chunk in chunks) for chunks in decoder.reads]
        assert set(sizes[:-1]) <= {30}


def test_the_room_is_bounded_by_memory_but_for_one_window() -> None:
    long = [[0] * 100_000]
    for name, bytes_per_token in (("124M", 73_728), ("1558M", 614_400)):
        scorer = Scorer(SIZES[name], BYTES, stride=512, block=4096)
        assert scorer.cache_tokens(long) == scorer.cache_tokens() == CACHE_BYTES // bytes_per_token
    assert Scorer(SIZES["gpt3-175B"], BYTES, stride=512).cache_tokens(long) == 2048
    few = Scorer(replace(SMALL, context_length=1000), BYTES, stride=512)
    assert few.cache_tokens([[0] * 33, [0] * 5]) == 64 + 32
