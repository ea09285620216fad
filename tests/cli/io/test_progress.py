"""Bars: where stderr is a terminal, and only there."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from helpers import Stream

from gpt2cli.cli.io import progress


def test_there_is_no_progress_bar_without_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.download_progress() as update:
        assert update is None
    assert stream.written() == b""


def test_a_progress_bar_names_the_file_without_its_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream(terminal=True, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.download_progress() as update:
        assert update is not None
        update("model\x07[red].bin", 1, 2)
        update("model\x07[red].bin", 2, 2)
    stream.flush()
    shown = stream.written().decode()
    assert "model␇[red].bin" in shown
    assert "\x07" not in shown


@pytest.mark.parametrize("to_terminal", [False, True])
def test_lines_are_counted_where_a_person_sees_no_lines_yet(
    monkeypatch: pytest.MonkeyPatch, to_terminal: bool
) -> None:
    stream = Stream(terminal=True, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", Stream(terminal=to_terminal))
    monkeypatch.setenv("TERM", "xterm")
    with progress.count_progress("lines", written=True) as advance:
        advance(1234)
    stream.flush()
    assert (b"1,234 lines" in stream.written()) == (not to_terminal)


@pytest.mark.parametrize("to_terminal", [False, True])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize(
    ("bar", "total", "told", "shown"),
    [
        (progress.token_progress, 4, (2,), b"50%"),
        (progress.row_progress, 40, (12, "5 tokens/s"), b"12/40"),
    ],
    ids=["tokens", "rows"],
)
def test_a_bar_stays_away_from_a_terminal_that_is_written_to(
    monkeypatch: pytest.MonkeyPatch,
    bar: Any,
    total: int,
    told: tuple[Any, ...],
    shown: bytes,
    written: bool,
    to_terminal: bool,
) -> None:
    stream = Stream(terminal=True, encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", Stream(terminal=to_terminal))
    monkeypatch.setenv("TERM", "xterm")
    with bar(total, written=written) as advance:
        advance(*told)
    stream.flush()
    assert (shown in stream.written()) == (not (written and to_terminal))
