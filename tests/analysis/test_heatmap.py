"""A text in colours: whole characters, and their classes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BYTES
from hypothesis import given
from hypothesis import strategies as st

from gpt2cli.analysis import heatmap, scoring


def score_of(ids: list[int]) -> scoring.Score:
    bits = np.array([np.nan, *range(1, len(ids))], dtype=np.float32)
    return scoring.Score(ids, bits, np.arange(len(ids)), 0)


@given(st.text(min_size=1, max_size=20), st.integers(0, 3))
def test_pieces_are_whole_characters_that_add_up(text: str, cut: int) -> None:
    data = text.encode()[cut:] or b"?"
    shown = list(heatmap.pieces(BYTES, score_of(list(data))))
    assert "".join(piece.text for piece in shown) == data.decode("utf-8", "replace")
    assert all(piece.text for piece in shown)
    if len(shown) > 1 and all(piece.bits is not None for piece in shown[1:]):
        later = sum(piece.bits or 0 for piece in shown[1:])
        first = len(data) - len("".join(p.text for p in shown[1:]).encode())
        if "\ufffd" not in data.decode("utf-8", "replace"):
            assert later == sum(range(first, len(data)))


@pytest.mark.parametrize(
    ("bits", "rank", "expected"),
    [(0.5, 10, (0, 0)), (1, 11, (1, 1)), (7.9, 100, (3, 1)), (8, 101, (4, 2)), (99, 1001, (5, 3))],
)
def test_classes_begin_at_their_limits(bits: float, rank: int, expected: tuple[int, int]) -> None:
    assert heatmap.classes(heatmap.Piece("x", bits, rank)) == expected
    assert heatmap.classes(heatmap.Piece("x", None, 0)) == (None, None)
