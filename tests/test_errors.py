"""Errors whose settings an interface calls by its own names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import GPT2CLIError, UsageError, did_you_mean, nearest

NAMES = {"top_k": "--top-k", "beams": "--beams"}


def test_settings_are_renamed_in_their_order_and_nothing_else() -> None:
    error = UsageError("top_k takes the place of beams, not of 'beams'", "top_k", "beams")
    assert error.renamed(NAMES) == "--top-k takes the place of --beams, not of 'beams'"
    assert error.renamed({}) == str(error)
    assert UsageError("top_k must be at least 1").renamed(NAMES) == "top_k must be at least 1"


def test_a_setting_is_a_whole_word() -> None:
    error = GPT2CLIError("torch.beams and beams2 need beams", "beams")
    assert error.renamed(NAMES) == "torch.beams and beams2 need --beams"


@given(st.text(), st.lists(st.sampled_from(["top_k", "beams", "seed"]), max_size=3))
def test_renaming_to_the_same_changes_nothing(message: str, settings: list[str]) -> None:
    error = UsageError(message, *settings)
    assert error.renamed({name: name for name in settings}) == message


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("topp", "; did you mean 'top_p'?"),
        ("TOP_P", "; did you mean 'top_p'?"),
        ("steps", "; did you mean 'Steps'?"),
        ("qqqq", ""),
        ("", ""),
    ],
)
def test_a_near_choice_is_suggested_as_it_is_spelt(word: str, hint: str) -> None:
    assert did_you_mean(word, ["top_p", "top_k", "Steps"]) == hint


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("--max-token", ["--max-tokens"]),
        ("--top_k", ["--top-k"]),
        ("--TOP-K", ["--top-k"]),
        ("--temper", ["--temperature"]),
        ("--top", ["--top-k", "--top-p"]),
        ("--min-tok", ["--min-tokens"]),
        ("--xyzzy", []),
        ("", []),
    ],
)
def test_the_nearest_names_are_those_most_alike(word: str, near: list[str]) -> None:
    names = ["--help", "--stop", "--temperature", "--top-p", "--max-tokens", "--min-tokens"]
    assert sorted(nearest(word, [*names, "--top-k", "--draft-tokens"])) == near
    assert nearest(word, []) == []
