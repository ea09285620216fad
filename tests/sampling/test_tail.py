"""A vocabulary in little says what sampling by all of it needs."""

from __future__ import annotations

import numpy as np
import pytest

from gpt2cli.sampling.rules import scale_by_temperature
from gpt2cli.sampling.tail import tail

LOGITS = np.random.default_rng(0).normal(-30, 3, 50_257).astype(np.float32)
BEST = np.argsort(-LOGITS)[:1000].tolist()


def test_every_token_that_is_not_listed_is_in_one_group_of_neighbours() -> None:
    found = tail(LOGITS, BEST)
    assert sum(found["counts"]) == len(LOGITS) - len(BEST)
    rest = np.sort(np.delete(LOGITS, BEST))[::-1]
    starts = np.cumsum([0, *found["counts"][:-1]]).astype(int)
    assert found["tops"] == rest[starts].tolist()
    assert found["means"][0] == pytest.approx(rest[: int(found["counts"][0])].mean())
    assert len(found["counts"]) < 250


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_groups_say_the_mass_of_all_tokens_at_any_temperature(temperature: float) -> None:
    found = {name: np.array(values) for name, values in tail(LOGITS, BEST).items()}
    scaled = scale_by_temperature(LOGITS[None].astype(np.float64), temperature)[0]
    total = np.exp(scaled).sum()
    excess = found["masses"] - np.log(found["counts"]) - found["means"]
    means = (found["means"] - LOGITS.max()) / temperature
    others = found["counts"] @ np.exp(means + excess / temperature**2)
    assert np.exp(scaled[BEST]).sum() + others == pytest.approx(total, rel=1e-5)


def test_nothing_is_left_where_all_tokens_are_listed() -> None:
    assert tail(LOGITS[:8], range(8)) == {"counts": [], "means": [], "masses": [], "tops": []}


def test_banned_tokens_are_in_no_group() -> None:
    logits = np.array([3.0, -np.inf, 1.0, 0.5], np.float32)
    assert tail(logits, [0])["counts"] == [2]
