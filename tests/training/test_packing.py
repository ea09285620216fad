"""Rows hold every token once, nothing leaks between documents, and little is wasted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.errors import UsageError
from gpt2cli.training.packing import Rows, pack
from gpt2cli.training.tokens import Tokens

PAIRS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=25)


def documents(pairs: list[tuple[int, int]]) -> Tokens:
    """Of so many tokens of prompt and of text, of which each says where it stands in the file."""
    sizes = [prompt + text for prompt, text in pairs]
    bounds, none = np.cumsum([1, *sizes]), np.zeros(len(pairs), int)
    prompts = np.array([prompt for prompt, _ in pairs])
    return Tokens(np.arange(bounds[-1]), bounds, prompts, none, none, None, 0, "", Path())


def rows_of(
    pairs: list[tuple[int, int]], context_length: int, mask_prompts: bool = True
) -> tuple[Tokens, Rows]:
    tokens = documents(pairs)
    every = np.arange(len(tokens))
    return tokens, pack(tokens, every, context_length, mask_prompts=mask_prompts)


@given(PAIRS, st.integers(1, 24), st.booleans())
def test_every_token_with_a_past_is_learned_exactly_once(
    pairs: list[tuple[int, int]], context_length: int, mask_prompts: bool
) -> None:
    tokens, rows = rows_of(pairs, context_length, mask_prompts)
    batch = rows.batch(np.arange(len(rows)))
    mask = np.ones_like(batch.ids[:, 1:], bool) if batch.mask is None else batch.mask
    expected = []
    for i, (prompt, _) in enumerate(pairs):
        begin, end = tokens.bounds[i], tokens.bounds[i + 1]
        expected += range(begin + (prompt if mask_prompts or not prompt else 1), end)
    assert sorted(batch.ids[:, 1:][mask].tolist()) == expected
    assert batch.targets == len(expected) == rows.targets.sum()
    assert rows.targets.tolist() == mask.sum(axis=1).tolist()


@given(PAIRS, st.integers(1, 24), st.booleans())
def test_what_is_learned_follows_its_own_document_in_its_own_segment(
    pairs: list[tuple[int, int]], context_length: int, mask_prompts: bool
) -> None:
    tokens, rows = rows_of(pairs, context_length, mask_prompts)
    batch = rows.batch(np.arange(len(rows)))
    segments = np.zeros_like(batch.ids[:, 1:]) if batch.segments is None else batch.segments
    mask = np.ones_like(segments, bool) if batch.mask is None else batch.mask
    for ids, learned, segment in zip(batch.ids, mask, segments, strict=True):
        assert (np.diff(segment) >= 0).all()
        for at in np.flatnonzero(learned):
            past = ids[: at + 1][segment[: at + 1] == segment[at]]
            assert past.tolist() == list(range(ids[at + 1] - len(past), ids[at + 1]))
            document = np.searchsorted(tokens.bounds, ids[at + 1], side="right") - 1
            has_prompt = tokens.prompts[document] > 0
            assert past[0] >= tokens.bounds[document] - (not has_prompt)


@given(PAIRS, st.integers(1, 24))
def test_no_two_rows_would_fit_into_one(pairs: list[tuple[int, int]], context_length: int) -> None:
    _, rows = rows_of(pairs, context_length)
    used = np.add.reduceat(rows.length, rows.first[:-1])
    assert used.max() <= context_length + 1
    assert len(used) == 1 or sum(sorted(used.tolist())[:2]) > context_length + 1
    assert rows.padding == pytest.approx(1 - used.sum() / len(used) / (context_length + 1))


def test_best_fit_fills_rows_that_fit_exactly() -> None:
    # Pieces with the end-of-text before them: 7, 5, 5, 4, 3 of rows of 12.
    _, rows = rows_of([(0, 4), (0, 6), (0, 2), (0, 4), (0, 3)], context_length=11)
    packed = np.split(rows.length, rows.first[1:-1])
    assert sorted(sorted(row.tolist()) for row in packed) == [[3, 4, 5], [5, 7]]
    assert rows.padding == 0


def test_one_long_text_needs_neither_mask_nor_segments_but_at_its_end() -> None:
    _, rows = rows_of([(0, 25)], context_length=10)
    whole = rows.batch([0, 1])
    assert whole.mask is None
    assert whole.segments is None
    assert whole.ids.tolist() == [list(range(11)), list(range(10, 21))]
    last = rows.batch([2])
    assert last.segments is None
    assert last.ids.tolist() == [[20, 21, 22, 23, 24, 25, 0, 0, 0, 0, 0]]
    assert last.mask is not None
    assert last.mask.tolist() == [[True] * 5 + [False] * 5]


def test_of_a_prompt_that_is_too_long_the_end_is_read() -> None:
    _, rows = rows_of([(20, 4)], context_length=10)
    batch = rows.batch([0])
    assert batch.ids.tolist() == [list(range(14, 25))]
    assert batch.targets == 4
    _, rows = rows_of([(5, 20)], context_length=10)  # all of which is learned, from the prompt on
    assert rows.batch([0]).ids.tolist() == [list(range(1, 12))]


def test_some_documents_are_packed_and_none_is_an_error() -> None:
    tokens = documents([(0, 3), (0, 4), (0, 5)])
    rows = pack(tokens, np.array([0, 2]), 20)
    assert sorted(rows.begin.tolist()) == [0, 7]
    with pytest.raises(UsageError, match="no token to learn"):
        pack(tokens, np.array([], int), 20)


def test_a_batch_is_read_in_parts() -> None:
    _, rows = rows_of([(0, 3)] * 7 + [(3, 6)] * 6, context_length=9)
    batch = rows.batch(np.arange(len(rows)))
    parts = list(batch.micro(2))
    assert [len(part.ids) for part in parts] == [2] * (len(rows) // 2) + [1] * (len(rows) % 2)
    assert np.concatenate([part.ids for part in parts]).tolist() == batch.ids.tolist()
    assert sum(part.targets for part in parts) == batch.targets
    assert batch.segments is not None
    assert parts[1].segments is not None
    assert parts[1].segments.tolist() == batch.segments[2:4].tolist()
