"""Each sampling rule by hand and against transformers, for NumPy and torch alike."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from logits import (
    BELOW_1,
    DISTINCT,
    INF,
    TIED,
    Floats,
    apply,
    by_rank,
    choose,
    clear_of_min_p,
    clear_of_top_p,
    kept,
    log,
    softmax,
    theirs,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling import sampler
from gpt2cli.sampling.rules import (
    draw,
    exclude_top_choices,
    generator,
    greedy,
    keep_min_p,
    keep_surprise,
    keep_top_k,
    keep_top_p,
    keep_typical,
    log_probabilities,
    log_softmax,
    next_limit,
    ranks,
    scale_by_temperature,
    uniforms,
)
from gpt2cli.sampling.sampler import Sampler

# --- temperature ------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(logits=TIED, temperature=st.floats(0.01, 100))
def test_temperature_is_that_of_transformers(logits: Floats, temperature: float) -> None:
    """Up to a constant per row, which no probability depends on."""
    expected = theirs(TemperatureLogitsWarper(temperature), logits)
    ours = apply(scale_by_temperature, logits, temperature)
    ours, expected = (x - x.max(axis=-1, keepdims=True) for x in (ours, expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 / temperature)


@settings(deadline=None, max_examples=100)
@given(logits=TIED, data=st.data())
def test_temperature_0_takes_the_best_token_and_the_lowest_id_among_equals(
    logits: Floats, data: st.DataObject
) -> None:
    uniform = data.draw(st.floats(0, 1, exclude_max=True))
    config = SamplingConfig(temperature=0, top_k=3, top_p=0.5, min_p=0.1)
    expected = [by_rank(row)[0] for row in logits]
    for array in (logits, torch.from_numpy(logits)):
        assert greedy(array).tolist() == expected
        assert choose(array, config, np.full(len(logits), uniform)) == expected


@pytest.mark.parametrize("shift", [0, -100])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_temperature_next_to_0_is_nearly_greedy(shift: int) -> None:
    logits = np.array([[1.0, 2.0, 3.0]], np.float32) + shift
    config = SamplingConfig(temperature=1e-40)
    for array in (logits, torch.from_numpy(logits)):
        assert choose(array, config, np.array([0.5])) == [2]


# --- log-probabilities --------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(0, 4), st.integers(1, 1000)),
    step=st.sampled_from([0.0, 0.5, 4.0]),
    count=st.integers(0, 12),
)
def test_log_probabilities_are_those_of_the_softmax_and_the_lower_ids_among_equals(
    seed: int, shape: tuple[int, int], step: float, count: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(-30, 3, shape).astype(np.float32)
    if step:
        logits = np.round(logits / step) * np.float32(step)
    targets = random.integers(shape[1], size=shape[0]).tolist()
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    for array in (logits, torch.from_numpy(logits)):
        table = log_softmax(array)
        assert log_probabilities(array, targets, count) == [
            (float(row[target]), [(i, float(row[i])) for i in ids])
            for row, target, ids in zip(table, targets, best.tolist(), strict=True)
        ]
        one_by_one = [log_probabilities(array[[i]], [t], count) for i, t in enumerate(targets)]
        assert log_probabilities(array, targets, count) == [row for [row] in one_by_one]
    expected = torch.log_softmax(torch.from_numpy(logits), dim=-1)
    np.testing.assert_allclose(log_softmax(logits), expected, rtol=1e-5, atol=1e-5)
    order = np.argsort(-logits, axis=-1, kind="stable")
    places = (np.argwhere(order == np.array(targets)[:, None])[:, 1] + 1).tolist()
    assert ranks(logits, targets) == ranks(torch.from_numpy(logits), targets) == places


# --- top-k ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "k", "ids"),
    [
        ([1, 3, 2], 1, [1]),
        ([1, 3, 2], 2, [1, 2]),
        ([1, 3, 2], 3, [0, 1, 2]),
        ([1, 3, 2], 99, [0, 1, 2]),
        ([2, 2, 2, 2], 2, [0, 1]),
        ([1, 2, 3, 2, 2], 3, [1, 2, 3]),
        ([-INF, 0, -INF], 2, [1]),
    ],
)
def test_top_k_keeps_k_tokens_and_the_lower_ids_among_equals(
    logits: list[float], k: int, ids: list[int]
) -> None:
    assert kept(apply(keep_top_k, np.array([logits], np.float32), k)) == [ids]


@settings(deadline=None, max_examples=100)
@given(logits=DISTINCT, k=st.integers(1, 14))
def test_top_k_is_that_of_transformers_where_no_logits_are_equal(logits: Floats, k: int) -> None:
    expected = theirs(TopKLogitsWarper(k), logits)
    np.testing.assert_array_equal(apply(keep_top_k, logits, k), expected)


@settings(deadline=None, max_examples=100)
@given(logits=TIED, k=st.integers(1, 14))
def test_top_k_keeps_the_first_k_by_rank(logits: Floats, k: int) -> None:
    result = apply(keep_top_k, logits, k)
    assert kept(result) == [sorted(by_rank(row)[:k]) for row in logits]
    np.testing.assert_array_equal(result[result > -INF], logits[result > -INF])


# --- top-p ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "p", "ids"),
    [
        ([0.5, 0.3, 0.2], 0.4, [0]),
        ([0.5, 0.3, 0.2], 0.6, [0, 1]),  # 0.5 is not enough, so the next one crosses 0.6
        ([0.2, 0.5, 0.3], 0.6, [1, 2]),
        ([0.5, 0.3, 0.2], 0.81, [0, 1, 2]),
        ([0.5, 0.3, 0.2], 1e-9, [0]),
        ([0.5, 0.3, 0.2], 1.0, [0, 1, 2]),
        ([1, 1], 0.5, [0]),  # exactly reached
        ([1, 1, 1, 1], 0.5, [0, 1]),
        ([1, 1, 1, 1], 0.51, [0, 1, 2]),
        ([0.0, 1.0, 0.0], 0.9, [1]),
    ],
)
def test_top_p_keeps_the_token_that_crosses_p(
    probabilities: list[float], p: float, ids: list[int]
) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([probabilities], np.float32))
    assert kept(apply(keep_top_p, logits, p)) == [ids]


@settings(deadline=None, max_examples=150)
@given(logits=DISTINCT, p=st.floats(0.01, 0.99))
def test_top_p_is_that_of_transformers_where_no_logits_are_equal(logits: Floats, p: float) -> None:
    assume(clear_of_top_p(logits, p))
    expected = theirs(TopPLogitsWarper(p), logits)
    np.testing.assert_array_equal(apply(keep_top_p, logits, p), expected)


@settings(deadline=None, max_examples=150)
@given(logits=TIED, p=st.floats(0.01, 0.99))
def test_top_p_keeps_the_shortest_beginning_by_rank_that_reaches_p(
    logits: Floats, p: float
) -> None:
    assume(clear_of_top_p(logits, p))
    results = kept(apply(keep_top_p, logits, p))
    for row, mass, ids in zip(logits, softmax(logits), results, strict=True):
        ranked = by_rank(row)
        assert ids == sorted(ranked[: len(ids)])
        assert mass[ranked[: len(ids)]].sum() > p
        assert mass[ranked[: len(ids) - 1]].sum() < p


# --- min-p ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "p", "ids"),
    [
        ([0.4, 0.3, 0.2, 0.1], 0.0, [0, 1, 2, 3]),
        ([0.4, 0.3, 0.2, 0.1], 0.26, [0, 1, 2]),
        ([0.1, 0.2, 0.3, 0.4], 0.51, [2, 3]),
        ([0.4, 0.3, 0.2, 0.1], 1.0, [0]),
        ([0.4, 0.4, 0.2], 1.0, [0, 1]),
    ],
)
def test_min_p_keeps_what_is_near_the_best(
    probabilities: list[float], p: float, ids: list[int]
) -> None:
    logits = np.log(np.array([probabilities], np.float32))
    assert kept(apply(keep_min_p, logits, p)) == [ids]


@settings(deadline=None, max_examples=100)
@given(logits=TIED, p=st.floats(0.001, 0.999) | st.just(0.0))
def test_min_p_is_that_of_transformers(logits: Floats, p: float) -> None:
    assume(clear_of_min_p(logits, p))
    expected = theirs(MinPLogitsWarper(p), logits)
    np.testing.assert_array_equal(apply(keep_min_p, logits, p), expected)


# --- typical-p --------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(logits=DISTINCT, p=st.floats(0.01, 0.99))
def test_typical_p_is_that_of_transformers(logits: Floats, p: float) -> None:
    surprise = -np.log(softmax(logits))
    entropy = (softmax(logits) * surprise).sum(axis=-1, keepdims=True)
    order = np.argsort(np.abs(surprise - entropy), axis=-1)
    gaps = np.diff(np.take_along_axis(np.abs(surprise - entropy), order, axis=-1))
    mass = np.cumsum(np.take_along_axis(softmax(logits), order, axis=-1), axis=-1)
    assume(np.all(gaps > 1e-4))
    assume(np.all(np.abs(mass - p) > 1e-5))
    expected = theirs(TypicalLogitsWarper(p), logits)
    np.testing.assert_array_equal(apply(keep_typical, logits, p), expected)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_typical_p_leaves_out_the_best_token_where_it_says_too_little() -> None:
    logits = np.log(np.array([[0.4, *[0.075] * 8, 0.0]], np.float32))
    assert kept(apply(keep_typical, logits, 0.4)) == [list(range(1, 9))]


# --- XTC --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "threshold", "ids"),
    [
        ([0.4, 0.3, 0.2, 0.1], 0.15, [2, 3]),
        ([0.4, 0.3, 0.2, 0.1], 0.35, [0, 1, 2, 3]),  # one choice only
        ([0.1, 0.2, 0.3, 0.4], 0.25, [0, 1, 2]),
        ([0.4, 0.4, 0.2], 0.3, [1, 2]),  # of two equals one stays
        ([0.2, 0.2, 0.2, 0.2, 0.2], 0.3, [0, 1, 2, 3, 4]),
    ],
)
def test_xtc_leaves_the_least_of_the_top_choices(
    probabilities: list[float], threshold: float, ids: list[int]
) -> None:
    logits = np.log(np.array([probabilities], np.float32))
    for array in (logits, torch.from_numpy(logits)):
        uniforms = np.zeros(1) if array is logits else torch.zeros(1)
        acted = exclude_top_choices(array, threshold, 0.5, uniforms)
        assert kept(np.array(acted.tolist())) == [ids]
        never = exclude_top_choices(array, threshold, 0.5, uniforms + 0.5)
        assert kept(np.array(never.tolist())) == [list(range(len(probabilities)))]


def test_xtc_acts_as_often_as_its_probability() -> None:
    count = 5_000
    logits = np.tile(log(0.6, 0.4), (count, 1))
    config = SamplingConfig(xtc_probability=0.25, xtc_threshold=0.3)
    samplers = [Sampler(config, generator(0, i)) for i in range(count)]
    tokens = sampler.choose(logits, samplers, [[]] * count)
    expected = count * np.array([0.75 * 0.6, 0.25 + 0.75 * 0.4])
    observed = np.bincount(tokens, minlength=2)
    assert ((observed - expected) ** 2 / expected).sum() < 15.1  # one in ten thousand is above


# --- mirostat ---------------------------------------------------------------------------


def test_mirostat_removes_what_surprises_too_much_but_never_the_best() -> None:
    logits = log(0.5, 0.25, 0.125, 0.125)
    for bits, ids in ((1.5, [0]), (2.5, [0, 1]), (3.5, [0, 1, 2, 3]), (0.1, [0])):
        assert kept(keep_surprise(logits, np.array([bits]))) == [ids]
    limit = next_limit(logits, np.array([2]), np.array([4.0]), 2.0, 0.5)
    assert limit.tolist() == pytest.approx([4 - 0.5 * (3 - 2)])


@pytest.mark.parametrize("tau", [4.0, 6.0])
@pytest.mark.parametrize("torch_too", [False, True])
def test_mirostat_keeps_the_mean_surprise_near_tau(tau: float, torch_too: bool) -> None:
    zipf = np.log(1 / np.arange(1, 1001))[None].astype(np.float32)  # 7.6 bits of entropy
    bits = -np.log2(softmax(zipf)[0])
    sampler = Sampler(SamplingConfig(mirostat_tau=tau), generator(0, 0))
    array = torch.from_numpy(zipf) if torch_too else zipf
    surprise = [bits[sampler.choose(array, [])] for _ in range(600)]
    assert np.mean(surprise[100:]) == pytest.approx(tau, abs=0.3)


# --- draw -------------------------------------------------------------------------------


def both_draw(logits: list[list[float]] | Floats, uniforms: list[float]) -> list[int]:
    array, u = np.array(logits, np.float32), np.array(uniforms)
    drawn: list[int] = draw(array, u).tolist()
    assert draw(torch.from_numpy(array), torch.from_numpy(u)).tolist() == drawn
    return drawn


@pytest.mark.parametrize(
    ("uniform", "token"),
    [
        *[(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (BELOW_1, 3)],
        *[(float(np.nextafter(at, 0)), i) for i, at in enumerate((0.25, 0.5, 0.75))],
    ],
)
def test_a_uniform_on_the_edge_of_two_bins_draws_the_upper(uniform: float, token: int) -> None:
    assert both_draw([[5.0, 5.0, 5.0, 5.0]], [uniform]) == [token]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 1), (0.49, 1), (0.5, 3), (0.99, 3), (BELOW_1, 3)]
)
def test_a_removed_token_is_never_drawn_at_the_edges(uniform: float, token: int) -> None:
    assert both_draw([[-INF, 7.0, -INF, 7.0, -INF]], [uniform]) == [token]


def test_each_row_is_drawn_with_its_own_uniform() -> None:
    assert both_draw([[0.0, 0.0], [0.0, 0.0], [-INF, 0.0]], [0.7, 0.2, 0.2]) == [1, 0, 1]


@settings(deadline=None, max_examples=200)
@given(
    logits=st.lists(st.just(-INF) | st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
    uniform=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, BELOW_1]),
)
def test_what_is_drawn_has_a_probability(logits: list[float], uniform: float) -> None:
    assume(max(logits) > -INF)
    (token,) = both_draw([logits], [uniform])
    assert logits[token] > -INF


@settings(deadline=None, max_examples=150)
@given(logits=TIED, data=st.data())
def test_draws_by_inverting_the_cumulative_sum(logits: Floats, data: st.DataObject) -> None:
    uniform = st.floats(0, 1, exclude_max=True)
    u = data.draw(st.lists(uniform, min_size=len(logits), max_size=len(logits)))
    cumulative = np.cumsum(softmax(logits), axis=-1)
    assume(np.all(np.abs(cumulative - np.array(u)[:, None]) > 1e-5))
    expected = [int(np.searchsorted(row, x)) for row, x in zip(cumulative, u, strict=True)]
    assert both_draw(logits, u) == expected


def test_the_middle_of_a_bin_draws_its_token_in_a_vocabulary_as_large_as_gpt2s() -> None:
    """Sums of 50,257 terms in float32 would be off by more than half a bin."""
    random = np.random.default_rng(0)
    logits = random.normal(size=50257).astype(np.float32)
    upper = np.cumsum(softmax(logits[None])[0])
    tokens = random.choice(50257, 40, replace=False)
    middles = (upper[tokens] + upper[tokens - 1]) / 2
    assert both_draw(np.tile(logits, (40, 1)), middles.tolist()) == tokens.tolist()


@pytest.mark.parametrize(
    "temperature",
    [pytest.param(0.5, marks=pytest.mark.slow), 1.0, pytest.param(2.0, marks=pytest.mark.slow)],
)
def test_tokens_come_as_often_as_they_are_probable(temperature: float) -> None:
    logits = np.array([1.0, 0.0, -1.0, 2.0, 0.5, -INF], np.float32)
    count, config = 5_000, SamplingConfig(temperature=temperature)
    uniforms = np.random.default_rng(0).random(count)
    tokens = choose(np.tile(logits, (count, 1)), config, uniforms)
    expected = count * softmax(logits[None] / temperature)[0]
    observed = np.bincount(tokens, minlength=6)
    assert observed[5] == 0
    chi_square = (((observed - expected) ** 2)[:5] / expected[:5]).sum()
    assert chi_square < 23.5  # four degrees of freedom: one in ten thousand is above


# --- generators -------------------------------------------------------------------------


def first_draws(seed: int, samples: int) -> list[list[float]]:
    return [generator(seed, i).random(4).tolist() for i in range(samples)]


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    many = first_draws(7, 5)
    for samples in range(1, 5):
        assert first_draws(7, samples) == many[:samples]


def test_seeds_and_samples_give_different_streams() -> None:
    streams = [tuple(stream) for seed in range(20) for stream in first_draws(seed, 5)]
    assert len(set(streams)) == 100


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**70), samples=st.integers(1, 4))
def test_the_generators_are_the_children_that_numpy_spawns(seed: int, samples: int) -> None:
    children = np.random.SeedSequence(seed).spawn(samples)
    expected = [np.random.default_rng(child).random(4).tolist() for child in children]
    assert first_draws(seed, samples) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_uniforms_are_those_of_the_generator_in_turn(count: int) -> None:
    one_by_one, drawn = generator(5, 3), uniforms(generator(5, 3), count)
    for _ in range(130):  # past two blocks
        assert next(drawn) == [one_by_one.random() for _ in range(count)]
