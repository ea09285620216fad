"""Errors whose settings an interface calls by its own names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import GPT2CLIError, UsageError

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
