"""Logits to sample from, and what is compared of them: for tests of sampling."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.sampling import sampler
from gpt2cli.sampling.sampler import Sampler

INF = float("inf")
Floats = np.ndarray[Any, Any]
BELOW_1 = float(np.nextafter(1.0, 0.0))


def rows(unique: bool, low: int = -120, high: int = 120) -> st.SearchStrategy[Floats]:
    """Logits (B, V) in steps of 1/8, which float32 holds exactly; equal ones unless `unique`."""

    def of_width(width: int) -> st.SearchStrategy[list[list[int]]]:
        row = st.lists(st.integers(low, high), min_size=width, max_size=width, unique=unique)
        return st.lists(row, min_size=1, max_size=3)

    return st.integers(1, 12).flatmap(of_width).map(lambda r: np.array(r, np.float32) / 8)


DISTINCT = rows(unique=True)
TIED = rows(unique=False, low=-8, high=8)


class Fixed(np.random.Generator):
    """Draws the same number for ever."""

    def __init__(self, uniform: float) -> None:
        super().__init__(np.random.PCG64(0))
        self._always = uniform

    def random(self, size: tuple[int, int]) -> Any:  # type: ignore[override]
        return np.full(size, self._always)


def choose(
    logits: Any, config: SamplingConfig, uniforms: Any, texts: list[list[int]] | None = None
) -> list[int]:
    """The tokens that samplers choose with these random numbers after these texts.

    Seen to be the same one by one and, as on a GPU, together.
    """
    texts = texts or [[]] * len(logits)

    def samplers() -> list[Sampler]:
        return [Sampler(config, Fixed(uniform)) for uniform in uniforms]

    chosen = sampler.choose(logits, samplers(), texts)
    picked, order = sampler.enqueue(logits, samplers(), texts)
    assert order == list(range(len(texts)))
    assert picked[:, 0].tolist() == chosen
    return chosen


def apply(rule: Callable[..., Any], logits: Floats, *arguments: Any) -> Floats:
    """The rule's result, once NumPy and torch have been seen to agree on it."""
    before = logits.copy()
    ours = rule(logits, *arguments)
    with_torch = rule(torch.from_numpy(logits.copy()), *arguments)
    assert isinstance(ours, np.ndarray)
    assert isinstance(with_torch, torch.Tensor)
    assert ours.dtype == logits.dtype
    np.testing.assert_allclose(ours, with_torch.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(logits, before, err_msg="the argument was changed")
    return ours


def theirs(processor: Any, logits: Floats, ids: list[list[int]] | None = None) -> Floats:
    """What transformers makes of the same logits."""
    input_ids = torch.tensor(ids if ids is not None else [[0]] * len(logits), dtype=torch.long)
    result: Floats = processor(input_ids, torch.from_numpy(logits.copy())).numpy()
    return result


def kept(logits: Floats) -> list[list[int]]:
    """The ids that a rule left in each row."""
    return [np.flatnonzero(row > -INF).tolist() for row in logits]


def softmax(logits: Floats) -> Floats:
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=-1, keepdims=True))
    probabilities: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def by_rank(row: Floats) -> list[int]:
    """Ids from the most probable on; equal ones in the order of their ids."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def clear_of_top_p(logits: Floats, p: float) -> bool:
    """Whether no sum of probabilities is so near p that rounding decides."""
    mass = np.cumsum(-np.sort(-softmax(logits), axis=-1), axis=-1)
    return bool(np.all(np.abs(mass - p) > 1e-5))


def clear_of_min_p(logits: Floats, p: float) -> bool:
    """Whether no probability is so near p times the best that rounding decides."""
    best = logits.max(axis=-1, keepdims=True)
    return p == 0 or bool(np.all(np.abs(logits - best - np.log(p)) > 1e-4))


def log(*probabilities: float) -> Floats:
    return np.log(np.array([probabilities], np.float32))
