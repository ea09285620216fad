"""How training is shown in a narrow terminal."""

from __future__ import annotations

import pytest

from gpt2cli.cli.render import train_view
from gpt2cli.training.trainer import Report


@pytest.mark.parametrize("columns", [20, 40, 60, 100])
def test_no_number_is_broken_in_a_narrow_terminal(columns: int) -> None:
    parts = [(0, "24/60"), (5, "━" * 10), (1, "loss 3.913"), (2, "3.073 bits/byte")]
    parts += [(4, "58,042 tokens/s"), (3, "0:00:12 left")]
    shown = train_view.fitting(parts, columns)
    assert shown[0] == "24/60"
    assert len(" ".join(shown)) <= columns
    kept = {rank for rank, text in parts if text in shown}
    assert kept == set(range(len(kept)))  # what matters most
    line = train_view.validation_line(Report(24, 3.9131, 1e-3, 5e4, 3.871, 3.073, True), columns)
    assert line.startswith("step 24: ")
    assert "3.073 bits/byte" in line
    if columns == 60:
        assert line == "step 24: loss 3.913, val 3.871, 3.073 bits/byte, saved"
