"""Runs begin, resume exactly, and are refused at once where they cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TEXT
from runs import PLAN, train, with_settings

from gpt2cli.errors import UsageError
from gpt2cli.system import machine
from gpt2cli.training import fitting
from gpt2cli.training import run as runs
from gpt2cli.training.optimizer import learning_rate
from gpt2cli.training.state import read_position


@pytest.mark.parametrize(("stop_after", "optimizer"), [(3, "adamw"), (5, "adamw"), (3, "muon")])
def test_resuming_equals_never_having_stopped(
    tmp_path: Path, stop_after: int, optimizer: str
) -> None:
    plan = with_settings(optimizer=optimizer)
    whole, reports = train(tmp_path / "whole", plan)
    expected = [(r.loss, r.val_loss) for r in reports]

    _, first = train(tmp_path / "parts", plan, stop_after=stop_after)
    assert len(first) == stop_after
    second, rest = train(tmp_path / "parts", plan, resume=True)

    assert [(r.loss, r.val_loss) for r in first + rest] == expected
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, second.model.get_parameter(name)), name
    files = [d / "model.safetensors" for d in (tmp_path / "whole", tmp_path / "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_more_steps_are_another_cosine_from_where_the_run_is(tmp_path: Path) -> None:
    train(tmp_path)
    run, reports = train(tmp_path, with_settings(steps=20), resume=True)
    assert [r.step for r in reports] == list(range(13, 21))
    rates = [learning_rate(step, with_settings(steps=20).training) for step in range(20)]
    assert [r.learning_rate for r in reports] == rates[12:]
    assert read_position(tmp_path).plan == run.plan
    with pytest.raises(UsageError, match="steps must be at least the 20 that are done"):
        train(tmp_path, with_settings(steps=19), resume=True)


def test_resuming_something_else_is_refused_and_named(tmp_path: Path) -> None:
    train(tmp_path, stop_after=1)
    for changed, name in (
        (with_settings(learning_rate=0.5), "learning_rate was 0.01 .* 0.5"),
        (with_settings(seed=3), "seed was 0 .* 3"),
        (replace(PLAN, model=replace(PLAN.model, vocab_size=301)), "vocab_size was 300 .* 301"),
        (replace(PLAN, precision="bf16"), "precision was fp32 .* bf16"),
    ):
        with pytest.raises(UsageError, match=name):
            train(tmp_path, changed, resume=True)
    with pytest.raises(UsageError, match="the text is not the one"):
        train(tmp_path, text=TEXT + "More.", resume=True)


def test_a_run_without_a_model_has_to_go_on(tmp_path: Path) -> None:
    train(tmp_path, stop_after=3)  # before the first validation
    with pytest.raises(UsageError, match="steps must be more than the 3 that are done"):
        train(tmp_path, with_settings(steps=3), resume=True)


def test_memory_is_counted_before_the_text_is_read_closely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "learn_vocabulary", None)
    for plan in (
        with_settings(batch_size=10**9),
        replace(PLAN, model=replace(PLAN.model, emb_dim=10**5)),
    ):
        with pytest.raises(UsageError, match=r"needs [\d,.]+ GB of memory and [\d,.]+ GB are free"):
            train(tmp_path / "new", plan)
    assert not (tmp_path / "new").exists()


def test_what_fits_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = with_settings(micro_batch_size=PLAN.training.batch_size)
    needed = fitting.needed(plan, PLAN.model, "cpu")
    monkeypatch.setattr(machine, "memory", lambda: (needed, needed))
    train(tmp_path, plan, stop_after=1)


@pytest.mark.parametrize("text", ["", "To be, or not to be."])
def test_a_text_that_is_too_short_is_refused_at_once(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "learn_vocabulary", None)
    with pytest.raises(UsageError, match="needs more"):
        train(tmp_path / "new", text=text)
    assert not (tmp_path / "new").exists()


def test_a_text_may_be_long_in_bytes_and_short_in_tokens(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"validation text has only .* tokens"):
        train(tmp_path, text="the " * 50)
