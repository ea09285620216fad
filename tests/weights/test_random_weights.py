"""Weights that are made when asked for: the same each time, and enough for every decoder."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import random_model

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native, opening
from gpt2cli.decoders.pages import Chunk
from gpt2cli.system.device import Placement
from gpt2cli.weights.random_weights import RandomWeights


def test_every_parameter_is_there_and_the_same_each_time(tiny_config: ModelConfig) -> None:
    weights = RandomWeights(tiny_config)
    shapes = {name: tuple(p.shape) for name, p in random_model(tiny_config).named_parameters()}
    assert {name: weight.shape for name, weight in weights.items()} == shapes
    again = RandomWeights(tiny_config)
    names = sorted(weights)
    assert all((weights[name] == again[name]).all() for name in names)
    assert not (weights[names[2]].ravel()[:8] == weights[names[4]].ravel()[:8]).any()


def test_numbers_are_small_and_norms_near_one(tiny_config: ModelConfig) -> None:
    weights = RandomWeights(tiny_config)
    matrix, scale = weights["blocks.0.feed_forward.up.weight"], weights["final_norm.scale"]
    assert matrix.dtype == np.float32
    assert matrix.std() == pytest.approx(0.02, rel=0.1)
    assert scale.mean() == pytest.approx(1, abs=0.03)


def test_progress_ends_with_all_bytes_even_if_some_are_made_twice(tiny_config: ModelConfig) -> None:
    told: list[tuple[str, int, int]] = []
    weights = RandomWeights(tiny_config, lambda *what: told.append(what))
    made = sum(weight.nbytes for weight in weights.values())
    assert told[-1] == ("random weights", made, made)
    assert weights["token_embedding.weight"].nbytes
    assert told[-1] == ("random weights", made, made)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("samples", [1, 3])
def test_whatever_decodes_gets_them(tiny_config: ModelConfig, precision: str, samples: int) -> None:
    if precision == "int8" and not native.available():
        pytest.skip(native.why_not())
    decoder = opening.open_random(tiny_config, Placement("cpu", precision), samples * 32)
    chunks = [Chunk(decoder.open(), 0, [1, 2, 3 + i]) for i in range(samples)]
    logits = decoder.read(chunks)
    assert logits.shape == (samples, tiny_config.vocab_size)
    assert np.isfinite(np.asarray(logits)).all()
