"""Training: the loss by hand, files that others can read, and runs that end as they should not."""

from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TEXT, random_model
from runs import PLAN, open_run, train, windows, with_settings
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import trainer
from gpt2cli.training.corpus import split_text
from gpt2cli.training.state import STATE_FILE
from gpt2cli.weights import checkpoint


@pytest.mark.parametrize("length", [18, 33, 100])
def test_evaluation_predicts_every_token_once(length: int) -> None:
    """Against transformers, window by window."""
    model = random_model(PLAN.model)
    ids = torch.randint(0, 300, (length,), generator=torch.Generator().manual_seed(0))
    rows = windows(ids.tolist(), 16)
    total = 0.0
    for start in range(0, length - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1])[0]
        total += sum(-logits.log_softmax(-1)[i, t].item() for i, t in enumerate(window[1:]))
    assert trainer.evaluate(model, rows, batch_size=2) == pytest.approx(total / (length - 1), 1e-5)


def test_a_run_learns_reports_and_leaves_a_model(tmp_path: Path) -> None:
    run, reports = train(tmp_path)
    assert [r.step for r in reports] == list(range(1, 13))
    assert reports[-1].loss < reports[0].loss
    assert [r.step for r in reports if r.val_loss is not None] == [5, 10, 12]
    last = reports[-1]
    assert last.val_loss is not None
    _, val = split_text(TEXT, 0.1)
    nats = last.val_loss * len(Tokenizer.load(tmp_path).encode(val))
    assert last.bits_per_byte == pytest.approx(nats / math.log(2) / len(val.encode()))
    best = min(r.val_loss for r in reports if r.val_loss is not None)
    saved = checkpoint.load(tmp_path)
    assert trainer.evaluate(saved, run.corpus.validation) == pytest.approx(best, abs=1e-4)


def test_the_directory_loads_in_transformers_with_the_same_tokens_and_logits(
    tmp_path: Path,
) -> None:
    train(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokenizer = GPT2TokenizerFast.from_pretrained(tmp_path)
    text = "ROMEO: what light<|endoftext|>Juliet"
    ids = Tokenizer.load(tmp_path).encode(text)
    assert tokenizer(text)["input_ids"] == ids
    x = torch.tensor([ids[:16]])
    assert torch.allclose(checkpoint.load(tmp_path)(x), theirs(x).logits, atol=1e-4)
    assert theirs.config.eos_token_id == Tokenizer.load(tmp_path).end_of_text


def test_a_run_that_diverges_before_anything_was_saved_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        GPT2CLIError, match=r"not finite at step \d; nothing was saved; try a lower"
    ):
        train(tmp_path, with_settings(learning_rate=1e9))
    assert {path.name for path in tmp_path.iterdir()} <= {".training.lock"}
    train(tmp_path)


@pytest.mark.parametrize("step", [8, 10])
def test_a_run_that_diverges_keeps_what_it_had(tmp_path: Path, step: int) -> None:
    """At step 8 the loss shows it; at 10 the loss is fine, and the weights after it are not."""
    with open_run(tmp_path) as run:
        reports = run.run()
        for report in reports:
            if report.step == 5:
                kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
            if report.step == step - 1:
                break
        if step == 8:
            run.model.final_norm.shift.data.fill_(math.nan)
        else:  # whose update comes after the loss
            run.settings = replace(run.settings, learning_rate=1e300)
        with pytest.raises(
            GPT2CLIError, match=f"step {step}; .* keeps the best model and the state of step 5; "
        ):
            next(reports)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_weights_that_are_not_finite_are_not_saved_when_stopped(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        reports = run.run(should_stop=lambda: run.step >= 7)
        for report in reports:
            if report.step == 5:
                kept = (tmp_path / STATE_FILE).read_bytes()
            if report.step == 7:
                run.model.final_norm.shift.data[0] = math.nan
                break
        with pytest.raises(GPT2CLIError, match="not finite at step 7"):
            next(reports)
    assert (tmp_path / STATE_FILE).read_bytes() == kept


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, stop_after=6)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WeightsError, match=r"cannot write .*vocab.json \(No space left"):
        train(tmp_path / "new")
    monkeypatch.undo()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(WeightsError, match=r"cannot write .*model.safetensors \(No space left"):
        train(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {".training.lock"}
    with pytest.raises(WeightsError, match=r"\(No space left on device\); what was there is kept"):
        train(tmp_path, resume=True, stop_after=7)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_model_that_does_not_fit_its_precision_is_not_saved(tmp_path: Path) -> None:
    with open_run(tmp_path, replace(PLAN, save_precision="fp16")) as run:
        run.model.final_norm.scale.data[0] = 1e6
        with pytest.raises(WeightsError, match=r"ln_f.weight has numbers too large for float16"):
            list(run.run())
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_killed_between_two_files_leaves_a_model_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The second validation writes config, weights and state, in this order."""

    class Killed(BaseException):
        pass

    def replace_some(source: Path, target: Path) -> None:
        if len(replaced) == written:
            raise Killed
        replaced.append(target)
        os.rename(source, target)

    train(tmp_path / "whole")
    with open_run(tmp_path / "killed") as run:
        reports = run.run()
        for _ in range(9):
            next(reports)
        replaced: list[Path] = []
        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", replace_some)
            with pytest.raises(Killed):
                next(reports)
    assert [p.name for p in replaced] == ["config.json", "model.safetensors"][:written]
    checkpoint.load(tmp_path / "killed")
    assert train(tmp_path / "killed", resume=True)[1][0].step == 6
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bf16_autocast_learns_as_well(tmp_path: Path) -> None:
    run, reports = train(tmp_path, replace(PLAN, precision="bf16"))
    assert reports[-1].loss < reports[0].loss
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
