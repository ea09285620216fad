"""What a run keeps in its directory, and what it finds there."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers import TEXT
from runs import PLAN, open_run, train, with_settings

from gpt2cli.errors import GPT2CLIError, UsageError, WeightsError
from gpt2cli.training.state import STATE_FILE, read_position
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors


def test_a_state_of_an_older_version_resumes_with_the_whole_plan(tmp_path: Path) -> None:
    """It noted the vocabulary's real size, and no precisions."""
    wanted = replace(PLAN, model=replace(PLAN.model, vocab_size=5000))
    run, _ = train(tmp_path, wanted, stop_after=3)
    path = tmp_path / STATE_FILE
    tensors, metadata = read_safetensors(path)
    old = [asdict(run.config), asdict(run.settings), metadata["digest"]]
    metadata = {"identity": json.dumps(old)} | {k: metadata[k] for k in ("step", "best_val_loss")}
    write_safetensors({k: t.clone() for k, t in tensors.items()}, path, metadata)
    with pytest.raises(UsageError, match="seed was 0"):
        train(tmp_path, replace(wanted, training=with_settings(seed=1).training), resume=True)
    resumed, reports = train(tmp_path, wanted, resume=True)
    assert reports[0].step == 4
    plan = read_position(tmp_path).plan
    assert plan == resumed.plan
    assert plan.model == wanted.model
    assert (plan.precision, plan.save_precision) == ("fp32", "fp32")


def test_resuming_from_damage_or_nothing_is_an_error(tmp_path: Path) -> None:
    train(tmp_path, stop_after=1)
    state = tmp_path / STATE_FILE
    whole = state.read_bytes()
    state.write_bytes(whole[:500])
    with pytest.raises(WeightsError, match="damaged"):
        train(tmp_path, resume=True)
    state.write_bytes(whole.replace(b'"best_val_loss"', b'"rest_val_loss"'))
    with pytest.raises(WeightsError, match="damaged"):
        train(tmp_path, resume=True)
    state.write_bytes(whole.replace(b'"weight.final_norm.scale"', b'"weight.final_norm.skale"'))
    with pytest.raises(WeightsError, match="does not hold this model"):
        train(tmp_path, resume=True)
    state.unlink()
    for directory in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(WeightsError, match="nothing to resume"):
            train(directory, resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_model_is_not_overwritten(tmp_path: Path) -> None:
    train(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="already holds a model"):
        train(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_nor_is_a_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("mine")
    with pytest.raises(UsageError, match=r"holds a vocabulary without a model, vocab\.json"):
        train(tmp_path)
    assert (tmp_path / "vocab.json").read_text() == "mine"


def test_one_run_at_a_time_has_a_directory(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(GPT2CLIError, match="another run is training in"):
        train(tmp_path, text=TEXT.upper())
    train(tmp_path)  # its lock is free again
