"""Training: the schedule and the loss by hand, resuming exactly, files that others can read."""

from __future__ import annotations

import errno
import json
import math
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from helpers import TEXT, random_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import GPT2CLIError, UsageError, WeightsError
from gpt2cli.system import estimate, machine
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import run as runs
from gpt2cli.training import trainer
from gpt2cli.training.corpus import split_text, train_vocabulary
from gpt2cli.training.optimizer import learning_rate, make_optimizer
from gpt2cli.training.state import STATE_FILE, Plan, read_position
from gpt2cli.weights import checkpoint
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors

PLAN = Plan(
    ModelConfig(300, 16, emb_dim=24, n_heads=2, n_layers=2, drop_rate=0.1, qkv_bias=False),
    TrainingConfig(steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_interval=5),
)


def with_settings(**settings: float) -> Plan:
    """`PLAN` with other settings of training."""
    return replace(PLAN, training=replace(PLAN.training, **settings))


def open_run(
    directory: Path, plan: Plan = PLAN, text: str = TEXT, resume: bool = False
) -> AbstractContextManager[trainer.Trainer]:
    return runs.open_run(plan, text, directory, resume=resume)


def train(
    directory: Path,
    plan: Plan = PLAN,
    text: str = TEXT,
    resume: bool = False,
    stop_after: int = 10**9,
) -> tuple[trainer.Trainer, list[trainer.Report]]:
    """A run and all that it reported, to its end or a step."""
    with open_run(directory, plan, text, resume) as run:
        return run, list(run.run(should_stop=lambda: run.step >= stop_after))


@given(text=st.text(min_size=1), fraction=st.floats(0.01, 0.99))
def test_splitting_keeps_every_byte_and_cuts_no_character(text: str, fraction: float) -> None:
    train, val = split_text(text, fraction)
    assert train + val == text
    wanted = int(len(text.encode()) * fraction)
    assert wanted - 3 <= len(val.encode()) <= wanted


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    settings = TrainingConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(step, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    half = 10 + 99 / 2
    assert learning_rate(int(half), settings) == pytest.approx(0.6, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay() -> None:
    model = random_model(PLAN.model)
    groups = make_optimizer(model, PLAN.training).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() == 2), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("length", [18, 33, 100])
def test_evaluation_predicts_every_token_once(length: int) -> None:
    """Against transformers, window by window."""
    model = random_model(PLAN.model)
    ids = torch.randint(0, 300, (length,))
    total = 0.0
    for start in range(0, length - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1])[0]
        total += sum(-logits.log_softmax(-1)[i, t].item() for i, t in enumerate(window[1:]))
    assert trainer.evaluate(model, ids, batch_size=2) == pytest.approx(total / (length - 1), 1e-5)


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
    assert trainer.evaluate(saved, run.corpus.val) == pytest.approx(best, abs=1e-4)


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


@pytest.mark.parametrize("stop_after", [3, 5])
def test_resuming_equals_never_having_stopped(tmp_path: Path, stop_after: int) -> None:
    whole, reports = train(tmp_path / "whole")
    expected = [(r.loss, r.val_loss) for r in reports]

    _, first = train(tmp_path / "parts", stop_after=stop_after)
    assert len(first) == stop_after
    second, rest = train(tmp_path / "parts", resume=True)

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
    _, reports = train(tmp_path, wanted, resume=True)
    assert reports[0].step == 4
    assert read_position(tmp_path).plan == wanted


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


def test_a_run_without_a_model_has_to_go_on(tmp_path: Path) -> None:
    train(tmp_path, stop_after=3)  # before the first validation
    with pytest.raises(UsageError, match="steps must be more than the 3 that are done"):
        train(tmp_path, with_settings(steps=3), resume=True)


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


def test_memory_is_counted_before_the_text_is_read_closely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "learn_vocabulary", None)
    for plan in (
        with_settings(batch_size=10**8),
        replace(PLAN, model=replace(PLAN.model, emb_dim=10**5)),
    ):
        with pytest.raises(UsageError, match=r"needs [\d,.]+ GB of memory and [\d,.]+ GB are free"):
            train(tmp_path / "new", plan)
    assert not (tmp_path / "new").exists()


def test_what_fits_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = estimate.training_bytes(PLAN.model, PLAN.training.batch_size)
    monkeypatch.setattr(machine, "memory", lambda: (needed, needed))
    train(tmp_path, stop_after=1)


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


def test_a_vocabulary_needs_room_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 257"):
        train_vocabulary(TEXT, 256, tmp_path)


def test_a_vocabulary_is_no_larger_than_a_text_can_give(tmp_path: Path) -> None:
    tokenizer = train_vocabulary(TEXT, 99_999_999_999, tmp_path)
    assert 300 < tokenizer.size < 257 + len(TEXT)
    assert Tokenizer.load(tmp_path) == tokenizer


def test_bf16_autocast_learns_as_well(tmp_path: Path) -> None:
    run, reports = train(tmp_path, replace(PLAN, precision="bf16"))
    assert reports[-1].loss < reports[0].loss
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
