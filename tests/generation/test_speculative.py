"""With a draft the model generates what it would alone, in fewer passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import BYTES, ScriptedDecoder, decoders, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import UsageError
from gpt2cli.generation import loop, speculative
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.speculative import Draft, DraftStats, ModelDraft, NgramDraft
from gpt2cli.sampling import rules
from gpt2cli.sampling.sampler import Sampler
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

GREEDY = SamplingConfig(temperature=0)


@pytest.fixture(scope="module")
def other_directory(
    tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, tiny_config: ModelConfig
) -> Path:
    """The tiny model with some noise, which often agrees with it."""
    directory = tmp_path_factory.mktemp("other")
    model = random_model(tiny_config)
    noise = torch.Generator().manual_seed(5)
    for p in model.parameters():
        p += 0.05 * torch.randn(p.shape, generator=noise)
    checkpoint.save(model, directory, 299, torch.float32)
    return directory


def everything(events: Any) -> list[tuple[int | None, str, str | None]]:
    return [(event.token_id, event.text, event.finish_reason) for event in events]


@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.5, "presence_penalty": 0.5},
        {"dry_multiplier": 0.8, "dry_allowed_length": 1},
        {"no_repeat_ngram": 2},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_greedy_text_is_that_of_the_model_alone(
    kind: str,
    options: dict[str, Any],
    tiny_directory: Path,
    other_directory: Path,
    tiny_tokenizer: Tokenizer,
) -> None:
    # Over the end of the context of 32, so that both windows slide.
    config = GenerationConfig(
        SamplingConfig(temperature=0, **options), max_tokens=70, ignore_eos=True, stop=("zzz",)
    )
    make, other = decoders(kind, tiny_directory), decoders(kind, other_directory)
    for prompt in ([1, 2, 3], list(range(20, 52))):
        alone = everything(loop.generate(make(), tiny_tokenizer, prompt, config))
        for draft in (ModelDraft(other()), NgramDraft()):
            tally = DraftStats()
            events = speculative.generate(make(), draft, tiny_tokenizer, prompt, config, tally)
            assert everything(events) == alone
            assert 0 < tally.passes + tally.accepted < 70
            assert tally.accepted <= tally.proposed
            assert tally.proposed or isinstance(draft, NgramDraft)


def test_a_draft_that_is_the_model_itself_is_always_right(
    tiny_directory: Path, tiny_tokenizer: Tokenizer
) -> None:
    make = decoders("numpy", tiny_directory)
    config = GenerationConfig(GREEDY, max_tokens=25, ignore_eos=True)
    tally = DraftStats()
    draft = ModelDraft(make())
    list(speculative.generate(make(), draft, tiny_tokenizer, [1, 2], config, tally))
    # 24 tokens follow the first: 8 per pass, of which the draft proposes 7.
    assert tally == DraftStats(proposed=21, accepted=21, passes=3)
    assert tally.acceptance_rate == 1
    assert tally.tokens_per_pass == 8


def test_a_draft_may_look_back_on_less(
    tiny_directory: Path, tiny_tokenizer: Tokenizer, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    short = random_model(replace(tiny_config, context_length=9))
    checkpoint.save(short, tmp_path, 299, torch.float32)
    make = decoders("numpy", tiny_directory)
    config = GenerationConfig(GREEDY, max_tokens=60, ignore_eos=True)
    alone = everything(loop.generate(make(), tiny_tokenizer, [1, 2], config))
    draft = ModelDraft(decoders("numpy", tmp_path)())
    assert alone == everything(
        speculative.generate(make(), draft, tiny_tokenizer, [1, 2], config, DraftStats())
    )


class Scripted:
    """A draft of given guesses."""

    def __init__(self, guess: Sequence[int]) -> None:
        self.guess = guess

    def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Any:
        return [speculative.Proposal(token) for token in self.guess[:count]]


def random_logits(ids: Sequence[int], size: int = 257, salt: int = 0) -> NDArray:
    """Logits (V,) that depend on every token; the end of text, the last id, is rather probable."""
    logits = np.random.default_rng([salt, *ids]).normal(size=size)
    logits[-1] += 1
    return logits.astype(np.float32)


def oracle(size: int = 257, context_length: int = 1000, salt: int = 0) -> ScriptedDecoder:
    return ScriptedDecoder(
        lambda _, text: random_logits(text, size, salt), context_length=context_length, size=size
    )


@given(
    guess=st.lists(st.integers(0, 256), max_size=9),
    most=st.integers(1, 9),
    context_length=st.sampled_from([8, 17, 1000]),
    draft_by=st.sampled_from(["script", "model", "itself", "ngram"]),
    min_tokens=st.integers(0, 10),
    prompt=st.binary(min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=150)
def test_ends_windows_and_logprobs_are_those_without_a_draft(
    guess: list[int],
    most: int,
    context_length: int,
    draft_by: str,
    min_tokens: int,
    prompt: bytes,
) -> None:
    config = GenerationConfig(
        GREEDY, max_tokens=30, stop=("e", "A"), min_tokens=min_tokens, logprobs=2
    )
    prompt = prompt[:context_length]
    expected = list(loop.generate(oracle(257, context_length), BYTES, prompt, config))
    drafts: dict[str, Draft] = {
        "script": Scripted(guess),
        "model": ModelDraft(oracle(257, 9, salt=1)),
        "itself": ModelDraft(oracle(257, context_length)),
        "ngram": NgramDraft(),
    }
    model, tally = oracle(257, context_length), DraftStats()
    events = speculative.generate(model, drafts[draft_by], BYTES, prompt, config, tally, most)
    assert list(events) == expected


FIVE = Tokenizer({bytes([i + 97]): i for i in range(5)}, {})


def softmax(logits: Any) -> Any:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def chance_of(chi_squared: float, degrees: int) -> float:
    """That of a sum of squares this large or larger."""
    halves = torch.tensor([degrees, chi_squared], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(halves[0], halves[1]))


def counts(config: SamplingConfig, draft: str | None, runs: int) -> Counter[tuple[int, ...]]:
    """How often each text of three tokens comes, over `runs` seeds."""
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(runs):
        settings = GenerationConfig(config, max_tokens=3, seed=seed)
        model, drafter = oracle(5), ModelDraft(oracle(5, salt=1))
        events: Any
        if draft is None:
            events = loop.generate(model, FIVE, [0, 1], settings)
        else:
            proposer = drafter if draft == "model" else Scripted([2, 2])
            events = speculative.generate(model, proposer, FIVE, [0, 1], settings, DraftStats(), 2)
        found[tuple(event.token_id for event in events)] += 1
    return found


@pytest.mark.parametrize("draft", ["model", "script"])
def test_texts_are_as_frequent_as_the_model_has_them(draft: str) -> None:
    config = SamplingConfig(temperature=0.7, top_k=4, frequency_penalty=0.5)
    runs = 2000
    found, expected = counts(config, draft, runs), {}
    for text in product(range(5), repeat=3):
        probability = 1.0
        for i, token in enumerate(text):
            logits = random_logits([0, 1, *text[:i]], 5).astype(np.float64)
            for earlier in text[:i]:
                logits[earlier] -= 0.5
            logits[logits < np.sort(logits)[-4]] = -np.inf
            probability *= softmax(logits / 0.7)[token]
        expected[text] = probability
    assert all(expected[text] > 0 for text in found)
    # Pearson's chi-squared over texts that are expected often enough, and all others as one.
    often = [text for text, p in expected.items() if p * runs >= 5]
    seen = np.array([found[text] for text in often])
    means = np.array([expected[text] * runs for text in often])
    seen, means = np.append(seen, runs - seen.sum()), np.append(means, runs - means.sum())
    assert chance_of(((seen - means) ** 2 / means).sum(), len(often)) > 0.001


@pytest.mark.parametrize(
    "options",
    [{"mirostat_tau": 1.5}, {"xtc_probability": 0.5}, {"repetition_penalty": 1.5, "top_p": 0.9}],
    ids=lambda options: next(iter(options)),
)
def test_rules_that_remember_or_toss_a_coin_work_as_without_a_draft(
    options: dict[str, float],
) -> None:
    config = SamplingConfig(temperature=1, **options)  # type: ignore[arg-type]
    runs = 1000
    alone, drafted = counts(config, None, runs), counts(config, "model", runs)
    often = [text for text in alone | drafted if alone[text] + drafted[text] >= 10]
    table = np.array([[count[text] for text in often] for count in (alone, drafted)])
    table = np.hstack([table, runs - table.sum(axis=1, keepdims=True) + 1])
    # Both columns come from as many runs: their difference has the variance of their sum.
    assert chance_of(((table[0] - table[1]) ** 2 / table.sum(axis=0)).sum(), len(often)) > 0.001


@given(seed=st.integers(0, 10**6), width=st.integers(2, 9))
@settings(deadline=None, max_examples=50)
def test_keeping_or_drawing_again_gives_exactly_the_distribution(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    logits, draft = random.normal(size=(2, 1, width)) * 2
    logits[0, random.integers(width)] = -np.inf
    p, q = softmax(logits[0]), softmax(draft[0])
    grid = (np.arange(4000) + 0.5) / 4000  # uniform numbers, evenly spread
    result = np.zeros(width)
    with np.errstate(divide="ignore"):
        for token in range(width):
            rows, proposed = np.repeat(logits, 4000, axis=0), np.full(4000, token)
            ids = rules.draw_or_keep(rows, proposed, np.repeat(draft, 4000, axis=0), grid)
            result += q[token] * np.bincount(ids, minlength=width) / 4000
            kept = np.mean(ids == token)
            assert kept >= min(1, p[token] / q[token]) - 1e-3
    assert np.abs(result - p).max() < 2e-3


def test_equal_distributions_keep_every_proposal_and_none_left_is_none() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    almost = np.array([1 - 2**-53])
    with np.errstate(all="ignore"):
        for token in range(50):
            assert rules.draw_or_keep(logits, np.array([token]), logits, almost) == token
        nothing = np.full((1, 50), -np.inf, dtype=np.float32)
        assert rules.draw_or_keep(nothing, np.array([3]), logits, np.array([0.5])) == 50


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("the cat sat; the c", 4, "at s"),
        ("one two", 3, ""),
        ("abababab", 5, "ababa"),
        ("xyz1 xyz2 xyz", 2, "2 "),  # the last time counts
        ("a", 3, ""),
    ],
)
def test_ngrams_propose_what_followed_the_last_time(text: str, count: int, expected: str) -> None:
    ids = list(text.encode())
    sampler = Sampler(SamplingConfig(), rules.generator(0, 0))
    proposals = NgramDraft().propose(ids, count, sampler)
    assert bytes(proposal.token for proposal in proposals).decode() == expected
    # Fed token by token, as it is while a text grows.
    grown = NgramDraft()
    for end in range(1, len(ids)):
        grown.propose(ids[:end], count, sampler)
    assert grown.propose(ids, count, sampler) == proposals


def test_the_tally_counts_guesses_that_came_true() -> None:
    expected = [e.token_id for e in generate_alone(8)]
    right, wrong = expected[1:4], [(expected[4] + 1) % 257]
    config = GenerationConfig(GREEDY, max_tokens=8, ignore_eos=True)
    tally = DraftStats()
    draft = Once([*right, *wrong, 0, 0])
    list(speculative.generate(oracle(257), draft, BYTES, [7], config, tally))
    assert (tally.proposed, tally.accepted) == (6, 3)
    assert tally.passes == 7 - 3


def generate_alone(count: int) -> list[Event]:
    config = GenerationConfig(GREEDY, max_tokens=count, ignore_eos=True)
    return list(loop.generate(oracle(257), BYTES, [7], config))


class Once(Scripted):
    """Guesses once, then never again."""

    def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Any:
        proposals, self.guess = super().propose(text, count, sampler), []
        return proposals


def test_fewer_tokens_are_proposed_while_guesses_are_wrong() -> None:
    asked: list[int] = []

    class Wrong(Scripted):
        def propose(self, text: Sequence[int], count: int, sampler: Sampler) -> Any:
            asked.append(count)
            return super().propose(text, count, sampler)

    config = GenerationConfig(GREEDY, max_tokens=9, ignore_eos=True)
    wrong = [(e.token_id or 0) + 1 for e in generate_alone(2)][1:] * 9
    list(speculative.generate(oracle(257), Wrong(wrong), BYTES, [7], config, DraftStats()))
    assert asked[:3] == [7, 1, 1]


@pytest.mark.parametrize(
    ("options", "most", "message"),
    [
        ({"samples": 2}, 7, "a draft and samples cannot go together"),
        ({"beams": 2}, 7, "a draft and beams cannot go together"),
        ({"prompt_logprobs": 0}, 7, "a draft and prompt_logprobs cannot go together"),
        ({}, 0, "at least 1 token"),
    ],
)
def test_what_does_not_go_with_a_draft_is_refused(
    options: dict[str, Any], most: int, message: str
) -> None:
    config = GenerationConfig(GREEDY, **options)
    with pytest.raises(UsageError, match=message):
        speculative.check(config, most)
