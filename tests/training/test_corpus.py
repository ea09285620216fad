"""A text becomes a vocabulary and two parts."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import TEXT
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import split_text, train_vocabulary


@given(text=st.text(min_size=1), fraction=st.floats(0.01, 0.99))
def test_splitting_keeps_every_byte_and_cuts_no_character(text: str, fraction: float) -> None:
    train, val = split_text(text, fraction)
    assert train + val == text
    wanted = int(len(text.encode()) * fraction)
    assert wanted - 3 <= len(val.encode()) <= wanted


def test_a_vocabulary_needs_room_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 257"):
        train_vocabulary(TEXT, 256, tmp_path)


def test_a_vocabulary_is_no_larger_than_a_text_can_give(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(TEXT, 99_999_999_999, tmp_path)
    assert 300 < tokenizer.size < 257 + len(TEXT)
    assert Tokenizer.load(tmp_path) == tokenizer
