"""The rules of sampling together: their order, and what a sampler remembers."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from logits import (
    BELOW_1,
    DISTINCT,
    INF,
    Floats,
    choose,
    clear_of_min_p,
    clear_of_top_p,
    log,
    softmax,
    theirs,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import gpt2cli
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling import sampler
from gpt2cli.sampling.constraint import Constraint, Matcher, resolve
from gpt2cli.sampling.rules import draw, generator
from gpt2cli.sampling.sampler import Sampler

BARD = gpt2cli.load("bard").tokenizer


def both_choose(
    logits: Floats, config: SamplingConfig, uniforms: list[float], ids: list[list[int]]
) -> list[int]:
    u, tensor = np.array(uniforms), torch.from_numpy(logits.copy())
    chosen = choose(logits, config, u, ids)
    assert choose(tensor, config, u, ids) == chosen
    return chosen


@settings(deadline=None, max_examples=200)
@given(
    logits=DISTINCT,
    penalty=st.none() | st.floats(0.5, 2),
    temperature=st.floats(0.3, 3),
    k=st.none() | st.integers(1, 12),
    p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0, 0.9),
    data=st.data(),
)
def test_chooses_as_transformers_processors_in_their_order(
    logits: Floats,
    penalty: float | None,
    temperature: float,
    k: int | None,
    p: float | None,
    min_p: float | None,
    data: st.DataObject,
) -> None:
    token, size = st.integers(0, logits.shape[1] - 1), len(logits)
    ids = data.draw(st.lists(st.lists(token, min_size=2, max_size=2), min_size=size, max_size=size))
    uniform = st.floats(0, 1, exclude_max=True)
    uniforms = data.draw(st.lists(uniform, min_size=size, max_size=size))

    expected = logits
    if penalty is not None:
        expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), expected, ids)
    expected = theirs(TemperatureLogitsWarper(temperature), expected)
    gaps = np.diff(np.sort(expected, axis=-1), axis=-1)
    assume(np.all(gaps > 1e-3))
    if k is not None:
        expected = theirs(TopKLogitsWarper(k), expected)
    if p is not None and p < 1:
        assume(clear_of_top_p(expected, p))
        expected = theirs(TopPLogitsWarper(p), expected)
    if min_p is not None:
        assume(clear_of_min_p(expected, min_p))
        expected = theirs(MinPLogitsWarper(min_p), expected)
    cumulative = np.cumsum(softmax(expected), axis=-1)
    assume(np.all(np.abs(cumulative - np.array(uniforms)[:, None]) > 1e-4))
    tokens = [int(np.searchsorted(row, u)) for row, u in zip(cumulative, uniforms, strict=True)]

    config = SamplingConfig(temperature, k, p, min_p, penalty)
    assert both_choose(logits, config, uniforms, ids) == tokens


@pytest.mark.parametrize(
    ("logits", "config", "uniform", "token"),
    [
        # Top-p counts the mass among the k that are left: of two equals, one makes a half.
        (log(1, 1, 1, 1), SamplingConfig(top_k=2, top_p=0.5), 0.9, 0),
        # Min-p comes last: had it gone first, top-p would have kept token 0 alone.
        (log(0.4, 0.3, 0.2, 0.1), SamplingConfig(top_p=0.5, min_p=0.6), 0.9, 1),
        # Temperature comes before top-p: sharpened, token 0 has 0.64 of the mass.
        (log(0.4, 0.3, 0.0001), SamplingConfig(temperature=0.5, top_p=0.6), 0.9, 0),
        (log(0.4, 0.3, 0.0001), SamplingConfig(top_p=0.6), 0.9, 1),
        # Temperature comes before min-p: flattened, 0.01 is a tenth of 1.
        (log(1, 0.01), SamplingConfig(temperature=2, min_p=0.05), 0.99, 1),
        (log(1, 0.01), SamplingConfig(min_p=0.05), 0.999, 0),
    ],
)
def test_the_rules_apply_in_the_documented_order(
    logits: Floats, config: SamplingConfig, uniform: float, token: int
) -> None:
    assert both_choose(logits, config, [uniform], [[]]) == [token]


def test_the_penalty_comes_before_the_best_token_is_taken() -> None:
    logits = np.array([[3.0, 2.0]], np.float32)
    config = SamplingConfig(temperature=0, repetition_penalty=2.0)
    assert both_choose(logits, config, [0.5], [[0]]) == [1]
    assert both_choose(logits, config, [0.5], [[]]) == [0]


def test_rules_that_are_off_change_nothing() -> None:
    logits = np.array([[0.3, -1.0, 2.0, 0.0]] * 50, np.float32)
    uniforms = np.linspace(0, BELOW_1, 50)
    plain = choose(logits, SamplingConfig(), uniforms)
    off = SamplingConfig(
        top_k=4,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        dry_multiplier=0.0,
        typical_p=1.0,
        xtc_probability=0.0,
    )
    assert choose(logits, off, uniforms, [[0, 1, 2, 3]] * 50) == plain
    assert set(plain) == {0, 1, 2, 3}


def test_a_row_that_has_lost_all_its_tokens_gives_none() -> None:
    for temperature in (0, 1):
        for logits in (np.zeros((2, 2)), torch.zeros((2, 2))):
            config, bans = SamplingConfig(temperature=temperature), {0: -INF, 1: -INF}
            samplers = [Sampler(config, generator(0, i), bias=bans) for i in range(2)]
            assert sampler.choose(logits, samplers, [[], []]) == [2, 2]
            assert sampler.enqueue(logits, samplers, [[], []])[0][:, 0].tolist() == [2, 2]


def test_old_seeds_draw_the_same_numbers_whatever_rule_is_off() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    random, expected = generator(5, 0), []
    for _ in range(20):
        expected += draw(logits, np.array([random.random()])).tolist()
    one = Sampler(SamplingConfig(xtc_probability=0.0, dry_multiplier=0.0), generator(5, 0))
    assert [one.choose(logits, []) for _ in range(20)] == expected


def test_explaining_lists_the_rules_in_their_order_and_what_is_left() -> None:
    config = SamplingConfig(
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        no_repeat_ngram=1,
        xtc_probability=1.0,
    )
    one = Sampler(config, generator(0, 0), bias={3: -INF}, ends=[4], min_tokens=2)
    stages = one.explain(log(0.4, 0.3, 0.15, 0.1, 0.05), [2], top=2)
    names = [stage.rule.split()[0] for stage in stages]
    assert names == [
        "the",
        "bias",
        "repetition",
        "frequency",
        "no",
        "no",
        "temperature",
        "top-k",
        "top-p",
        "XTC",
    ]
    assert [stage.candidates for stage in stages] == [5, 4, 4, 4, 3, 2, 2, 2, 2, 1]
    for earlier, later in itertools.pairwise(stages):
        after = {i: a for i, _, a in earlier.top}
        assert all(after[i] == pytest.approx(b) for i, b, _ in later.top if i in after)
    assert stages[0].top == [
        (0, pytest.approx(0.4), pytest.approx(0.4)),
        (1, *[pytest.approx(0.3)] * 2),
    ]


def test_explaining_says_where_a_rule_has_left_no_token() -> None:
    one = Sampler(SamplingConfig(no_repeat_ngram=1, top_k=2), generator(0, 0))
    model, *others = one.explain(log(0.5, 0.3, 0.2), [0, 1, 2])
    assert model.candidates == 3
    assert [(stage.rule, stage.candidates) for stage in others] == [
        ("no repeated 1-gram", 0),
        ("temperature 1", 0),
        ("top-k 2", 0),
    ]
    assert {after for stage in others for *_, after in stage.top} == {0.0}


def test_explaining_shows_numbers_where_a_penalty_is_beyond_them() -> None:
    one = Sampler(SamplingConfig(repetition_penalty=5e-324), generator(0, 0))
    stages = one.explain(np.array([[1.0, 2.0, -1.0]], np.float32), [0, 1], top=3)
    shown = [number for stage in stages for _, *both in stage.top for number in both]
    assert np.isfinite(shown).all()


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


CONFIGS = st.builds(
    SamplingConfig,
    temperature=st.sampled_from([0.0, 0.8, 1.0, 3.0]),
    top_k=optional(st.sampled_from([1, 7, 200])),
    top_p=optional(st.sampled_from([0.3, 0.95, 1.0])),
    min_p=optional(st.sampled_from([0.0, 0.05])),
    typical_p=optional(st.sampled_from([0.4, 1.0])),
    xtc_probability=optional(st.sampled_from([0.0, 0.7])),
) | st.builds(SamplingConfig, mirostat_tau=st.sampled_from([2.0, 6.0]))
PAST = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.5]),
        "frequency_penalty": st.just(0.5),
        "presence_penalty": st.just(-1.0),
        "dry_multiplier": st.just(0.8),
        "no_repeat_ngram": st.integers(1, 3),
    },
)


@dataclass(frozen=True)
class Text:
    """All that a text brings to a step; two samplers of it are in the same state."""

    config: SamplingConfig
    seed: int
    ids: list[int]
    bias: dict[int, float]
    min_tokens: int
    constraint: Constraint | None

    def start(self) -> tuple[Sampler, Matcher | None]:
        matcher = None if self.constraint is None else self.constraint.matcher(BARD)
        one = Sampler(
            self.config,
            generator(self.seed, 0),
            prompt_length=1,
            bias=self.bias,
            ends=[i for i in (BARD.end_of_text, 3) if i is not None],
            min_tokens=self.min_tokens,
            breakers=(4,),
            matcher=matcher,
        )
        return one, matcher


LETTERS = resolve(regex="[a-z ]+")
FEW_WORDS = resolve(choice=["yes", "no"])
TEXTS = st.builds(
    Text,
    st.builds(lambda config, past: replace(config, **past), CONFIGS, PAST),
    st.integers(0, 99),
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.sampled_from([{}, {3: 4.0}, {5: -INF, 6: 1.0}]),
    st.sampled_from([0, 5]),
    st.sampled_from([None, None, LETTERS, FEW_WORDS]),
)


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(TEXTS, min_size=1, max_size=20), seed=st.integers(0, 999))
def test_a_text_becomes_the_same_in_any_company(texts: list[Text], seed: int) -> None:
    random = np.random.default_rng(seed)
    texts = [replace(text, ids=list(text.ids)) for text in texts]
    ids = [text.ids for text in texts]
    starts = [[text.start() for text in texts] for _ in range(3)]
    alone, rows, on_device = ([one for one, _ in start] for start in starts)
    for _ in range(4):
        logits = random.normal(size=(len(texts), BARD.size)).astype(np.float32) * 3
        expected = [one.choose(logits[i : i + 1], ids[i]) for i, one in enumerate(alone)]
        assert sampler.choose(logits, rows, ids) == expected
        # What a GPU does, though NumPy computes it.
        picked, order = sampler.enqueue(logits, on_device, ids)
        assert sampler.take(picked.tolist(), order, on_device) == expected
        for i, token in enumerate(expected):
            if token < BARD.size:
                ids[i].append(token)
                for start in starts:
                    if (matcher := start[i][1]) is not None:
                        matcher.push(token)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_choosing_never_waits_for_a_gpu(temperature: float) -> None:
    # Tensors on "meta" have no values: an operation whose shape, branch or result the host
    # would have to wait for fails there.
    config = SamplingConfig(
        temperature,
        top_k=5,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.3,
        typical_p=0.9,
        xtc_probability=0.5,
    )
    for sampling in (config, SamplingConfig(temperature, mirostat_tau=3.0)):
        samplers = [
            Sampler(sampling, generator(0, 0)),
            Sampler(config, generator(0, 1)),
            Sampler(config, generator(0, 2), matcher=LETTERS.matcher(BARD)),
        ]
        logits = torch.zeros(3, BARD.size, device="meta")
        for _ in range(2):
            picked, order = sampler.enqueue(logits, samplers, [[1, 2], [3], [4]])
            assert (picked.device.type, picked.shape, order) == ("meta", (3, 2), [0, 1, 2])


@pytest.mark.gpu
def test_a_step_waits_for_a_gpu_once_and_a_text_is_the_same_in_any_company() -> None:
    configs = [
        SamplingConfig(0.8, top_p=0.95),
        SamplingConfig(0),
        SamplingConfig(1.0, top_k=50, typical_p=0.9, repetition_penalty=1.3),
        SamplingConfig(mirostat_tau=4.0),
    ]
    count = 40
    logits = 3 * torch.randn(count, BARD.size, device="cuda")
    texts = [[1, 2, i] for i in range(count)]

    def start() -> list[Sampler]:
        matchers = [None if i % 3 else LETTERS.matcher(BARD) for i in range(count)]
        return [
            Sampler(configs[i % 4], generator(0, i), bias={i: 1.0}, matcher=matchers[i])
            for i in range(count)
        ]

    sampler.choose(logits, start(), texts)  # the first call sets the GPU up
    together = start()
    torch.cuda.set_sync_debug_mode("error")
    try:
        picked, order = sampler.enqueue(logits, together, texts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    alone = [one.choose(logits[i : i + 1], texts[i]) for i, one in enumerate(start())]
    assert sampler.take(picked.tolist(), order, together) == alone
