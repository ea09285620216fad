"""What the text so far does to the next token: by hand and against transformers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logits import TIED, Floats, apply, theirs
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling.penalties import (
    add,
    count_penalties,
    dry_penalties,
    ngram_bans,
    penalise_repetition,
)
from gpt2cli.sampling.rules import generator
from gpt2cli.sampling.sampler import Sampler

INF = math.inf
TEXT = st.lists(st.integers(0, 3), max_size=14)


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_changes_are_added_row_by_row(make: Callable[..., Any]) -> None:
    logits = make((2, 3)) + 1
    changed = add(logits, [{0: 2.5, 2: -INF}, {}])
    assert changed.tolist() == [[3.5, 1.0, -INF], [1.0, 1.0, 1.0]]
    assert logits.tolist() == [[1.0] * 3] * 2


def test_frequency_counts_and_presence_does_not() -> None:
    assert count_penalties([5, 6, 5, 5], 0.5, 0.25) == {5: -1.75, 6: -0.75}
    assert count_penalties([5], -1.0, 0.0) == {5: 1.0}


def test_the_prompt_is_free_of_frequency_and_presence_penalties() -> None:
    config = SamplingConfig(temperature=0, presence_penalty=2.0)
    logits = np.array([[3.0, 2.0, 0.5]])
    chosen = [
        Sampler(config, generator(0, 0), prompt_length=2).choose(logits, text)
        for text in ([0, 0], [0, 0, 0], [0, 0, 0, 1])
    ]
    assert chosen == [0, 1, 0]  # 3; 3 − 2 < 2; 3 − 2 > 2 − 2


@settings(deadline=None, max_examples=200)
@given(ids=TEXT.filter(bool), n=st.integers(1, 4))
def test_ngrams_are_banned_as_in_transformers(ids: list[int], n: int) -> None:
    expected = NoRepeatNGramLogitsProcessor(n)(torch.tensor([ids]), torch.zeros(1, 4))
    assert add(np.zeros((1, 4)), [ngram_bans(ids, n)]).tolist() == expected.tolist()


def dry_by_definition(ids: list[int], allowed: int, breakers: set[int]) -> dict[int, int]:
    """{token: length of the longest sequence it would repeat}, by trying all lengths."""
    longest: dict[int, int] = {}
    for at in range(1, len(ids)):
        if ids[at] in breakers:
            continue
        for n in range(allowed, at + 1):
            tail = ids[len(ids) - n :]
            if ids[at - n : at] == tail and not breakers & set(tail):
                longest[ids[at]] = max(n, longest.get(ids[at], 0))
    return longest


@settings(deadline=None, max_examples=300)
@given(ids=TEXT, allowed=st.integers(1, 3), breakers=st.sets(st.integers(0, 3), max_size=1))
def test_dry_penalises_by_the_longest_repetition(
    ids: list[int], allowed: int, breakers: set[int]
) -> None:
    expected = {
        token: pytest.approx(-0.8 * 1.75 ** (n - allowed))
        for token, n in dry_by_definition(ids, allowed, breakers).items()
    }
    assert dry_penalties(ids, 0.8, 1.75, allowed, breakers) == expected


def test_dry_by_hand() -> None:
    text = [1, 2, 3, 9, 1, 2]
    assert dry_penalties(text, 1.0, 2.0, 2) == {3: -1.0}
    assert dry_penalties(text, 1.0, 2.0, 1) == {3: -2.0}
    assert dry_penalties(text, 1.0, 2.0, 3) == {}
    assert dry_penalties(text, 1.0, 2.0, 1, breakers={1}) == {3: -1.0}
    assert dry_penalties(text, 1.0, 2.0, 1, breakers={3}) == {}
    (penalty,) = dry_penalties([7] * 300, 1.0, 1e300, 1).values()
    assert -INF < penalty < -1e20  # finite, so that it is no ban


# --- repetition penalty -----------------------------------------------------------------


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = np.array([[2.0, -2.0, 0.0, 3.0, -3.0]], np.float32)
    seen = [[0, 1, 2, 1]]  # how often does not matter
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 0.0, 3.0, -3.0]]
    assert penalise_repetition(logits, seen, 0.5).tolist() == [[4.0, -1.0, 0.0, 3.0, -3.0]]
    assert penalise_repetition(logits, seen, 1.0).tolist() == logits.tolist()


@settings(deadline=None, max_examples=100)
@given(logits=TIED, penalty=st.floats(0.1, 10), data=st.data())
def test_the_penalty_is_that_of_transformers(
    logits: Floats, penalty: float, data: st.DataObject
) -> None:
    token = st.integers(0, logits.shape[1] - 1)
    length = data.draw(st.integers(1, 4))
    row = st.lists(token, min_size=length, max_size=length)
    ids = data.draw(st.lists(row, min_size=len(logits), max_size=len(logits)))
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), logits, ids)

    def rule(array: Any) -> Any:
        return penalise_repetition(array, ids, penalty)

    np.testing.assert_allclose(apply(rule, logits), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_each_row_is_penalised_for_its_own_text(make: Callable[..., Any]) -> None:
    logits = make((3, 4)) + 1
    penalised = penalise_repetition(logits, [[1, 1], [], [3, 0]], 2.0)
    assert penalised.tolist() == [[1, 0.5, 1, 1], [1] * 4, [0.5, 1, 1, 0.5]]
    assert logits.tolist() == [[1.0] * 4] * 3
