"""The fast draw is that of the rules, to the token, for vocabularies of all sizes and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logits import BELOW_1, INF, TIED, Floats

from gpt2cli.sampling import nucleus
from gpt2cli.sampling.rules import draw, keep_top_k, keep_top_p, scale_by_temperature

UNIFORM = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, BELOW_1])
P = st.none() | st.floats(0.001, 1) | st.sampled_from([0.5, 0.95, 1.0])


def by_the_rules(
    logits: Floats, temperature: float, k: int | None, p: float | None, uniform: float
) -> int:
    with np.errstate(all="ignore"):
        left = scale_by_temperature(logits[None], temperature)
        left = left if k is None else keep_top_k(left, k)
        left = left if p is None else keep_top_p(left, p)
        return int(draw(left, np.array([uniform]))[0])


def vocabulary(size: int, seed: int, shape: str, spread: float) -> Floats:
    """Logits as of random weights, of a trained model, with many equal, or with many banned."""
    random = np.random.default_rng(seed)
    logits = (random.normal(size=size) * spread).astype(np.float32)
    if shape == "peaked":
        best = random.choice(size, min(size, 300), replace=False)
        logits[best] += np.linspace(5 * spread, spread, len(best), dtype=np.float32)
    if shape == "tied":
        logits = np.round(logits * 2) / 2
    if shape == "banned":
        logits[random.random(size) < 0.9] = -INF
    return logits


@settings(deadline=None, max_examples=300)
@given(
    logits=st.builds(
        vocabulary,
        size=st.integers(1, 600) | st.integers(4000, 4200) | st.integers(10_000, 30_000),
        seed=st.integers(0, 2**32),
        shape=st.sampled_from(["flat", "peaked", "tied", "banned"]),
        spread=st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 10.0]),
    ),
    temperature=st.sampled_from([0.8, 1.0]) | st.floats(1e-3, 100),
    k=st.none() | st.integers(1, 300) | st.integers(1, 30_000),
    p=P,
    uniform=UNIFORM,
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_token_is_that_of_the_rules(
    logits: Floats, temperature: float, k: int | None, p: float | None, uniform: float
) -> None:
    before, settings = logits.copy(), (temperature, k, p, uniform)
    assert nucleus.draw_one(logits, *settings) == by_the_rules(logits, *settings)
    np.testing.assert_array_equal(logits, before, err_msg="the argument was changed")


@settings(deadline=None, max_examples=300)
@given(logits=TIED, k=st.none() | st.integers(1, 14), p=P, uniform=UNIFORM)
def test_among_equals_it_keeps_the_same(
    logits: Floats, k: int | None, p: float | None, uniform: float
) -> None:
    for row in logits:
        settings = (1.0, k, p, uniform)
        assert nucleus.draw_one(row, *settings) == by_the_rules(row, *settings)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95, 0.999999])
def test_it_finds_the_token_that_crosses_p_whatever_the_sample_says(p: float) -> None:
    # Looked at alone, every 32nd token says nothing of the others.
    logits = np.linspace(-3, 3, 40_000, dtype=np.float32)
    for sampled in (-9.0, 9.0, 0.0):
        logits[:: nucleus.STRIDE] = sampled
        for uniform in (0.0, 0.2, 0.7, BELOW_1):
            settings = (1.0, None, p, uniform)
            assert nucleus.draw_one(logits, *settings) == by_the_rules(logits, *settings)


def test_a_vocabulary_without_tokens_gives_none() -> None:
    for size in (0, 1, 5000):
        for value in (-INF, np.nan):
            logits = np.full(size, value, np.float32)
            assert nucleus.draw_one(logits, 1.0, None, 0.9, 0.5) == size
            assert nucleus.draw_one(logits, 1.0, 1, 0.9, 0.5) == size


@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 3000), seed=st.integers(0, 999), tied=st.booleans(), k=st.integers(1, 3000)
)
def test_the_largest_are_those_of_top_k(size: int, seed: int, tied: bool, k: int) -> None:
    logits = vocabulary(size, seed, "tied" if tied else "flat", 1.0)
    expected = np.flatnonzero(keep_top_k(logits[None], k)[0] > -INF)
    assert nucleus.largest(logits, min(k, size)).tolist() == expected.tolist()
