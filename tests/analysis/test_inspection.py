"""What is seen within a model: windows and sums."""

from __future__ import annotations

import pytest
from helpers import PROMPT

from gpt2cli.analysis import inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer


def test_a_window_keeps_the_numbers_and_says_what_went_before(
    tiny_model: GPT2, tiny_tokenizer: Tokenizer, tiny_inspection: Inspection
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    part = inspection.inspect(tiny_model, tiny_tokenizer, ids, window=5)
    assert (part.first, part.ids) == (27, ids[-5:])
    assert part.target == tiny_inspection.target
    assert (part.attention == tiny_inspection.attention[..., -5:, -5:]).all()
    assert part.attention.sum(-1) + part.attention_before == pytest.approx(1, abs=1e-5)
    assert not tiny_inspection.attention_before.any()
    assert (part.norms.mean_in == tiny_inspection.norms.mean_in[:, -5:]).all()


def test_parts_are_sorted_and_add_up(tiny_inspection: Inspection) -> None:
    parts = tiny_inspection.contributions.parts()
    assert len(parts) == 3 + 2 * (3 + 2)
    assert sum(parts.values()) == pytest.approx(tiny_inspection.target.logit, abs=1e-4)
    sizes = [abs(value) for value in parts.values()]
    assert sizes == sorted(sizes, reverse=True)
