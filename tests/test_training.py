"""Training: the schedule and the loss by hand, resuming exactly, files that others can read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TEXT, random_model
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel, GPT2TokenizerFast

from gpt2cli import checkpoint, training
from gpt2cli.config import ModelConfig, Spec, TrainingConfig
from gpt2cli.device import place
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.tokenizer import Tokenizer

SPEC = Spec(
    name="test",
    model=ModelConfig(300, 16, emb_dim=24, n_heads=2, n_layers=2, drop_rate=0.1, qkv_bias=False),
    training=TrainingConfig(
        steps=12, batch_size=4, learning_rate=1e-2, warmup_steps=2, eval_interval=5
    ),
)


def open_run(
    directory: Path, spec: Spec = SPEC, text: str = TEXT, resume: bool = False
) -> training.Trainer:
    placement = place("cpu", "float32")
    return training.open_run(spec, text, directory, resume=resume, placement=placement)


@given(text=st.text(min_size=1), fraction=st.floats(0.01, 0.99))
def test_splitting_keeps_every_byte_and_cuts_no_character(text: str, fraction: float) -> None:
    train, val = training.split_text(text, fraction)
    assert train + val == text
    wanted = int(len(text.encode()) * fraction)
    assert wanted - 3 <= len(val.encode()) <= wanted


def test_learning_rate_warms_up_then_falls_as_a_cosine() -> None:
    settings = TrainingConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.2)
    rates = [training.learning_rate(step, settings) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    half = 10 + 99 / 2
    assert training.learning_rate(int(half), settings) == pytest.approx(0.6, abs=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay() -> None:
    model = random_model(SPEC.model)
    groups = training.make_optimizer(model, SPEC.training).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.dim() == 2), name
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("length", [18, 33, 100])
def test_evaluation_predicts_every_token_once(length: int) -> None:
    """Against transformers, window by window."""
    model = random_model(SPEC.model)
    ids = torch.randint(0, 300, (length,))
    total = 0.0
    for start in range(0, length - 1, 16):
        window = ids[start : start + 17]
        logits = model(window[None, :-1])[0]
        total += sum(-logits.log_softmax(-1)[i, t].item() for i, t in enumerate(window[1:]))
    assert training.evaluate(model, ids, batch_size=2) == pytest.approx(total / (length - 1), 1e-5)


def test_a_run_learns_reports_and_leaves_a_model(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    reports = list(run.run())
    assert [r.step for r in reports] == list(range(1, 13))
    assert reports[-1].loss < reports[0].loss
    assert [r.step for r in reports if r.val_loss is not None] == [5, 10, 12]
    last = reports[-1]
    assert last.val_loss is not None
    _, val = training.split_text(TEXT, 0.1)
    nats = last.val_loss * len(Tokenizer.load(tmp_path).encode(val))
    assert last.bits_per_byte == pytest.approx(nats / math.log(2) / len(val.encode()))
    best = min(r.val_loss for r in reports if r.val_loss is not None)
    saved = checkpoint.load(tmp_path)
    assert training.evaluate(saved, run.corpus.val) == pytest.approx(best, abs=1e-4)


def test_the_directory_loads_in_transformers_with_the_same_tokens_and_logits(
    tmp_path: Path,
) -> None:
    list(open_run(tmp_path).run())
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
    whole = open_run(tmp_path / "whole")
    expected = [(r.loss, r.val_loss) for r in whole.run()]

    first = open_run(tmp_path / "parts")
    got = [(r.loss, r.val_loss) for r in first.run(should_stop=lambda: first.step >= stop_after)]
    assert len(got) == stop_after
    second = open_run(tmp_path / "parts", resume=True)
    got += [(r.loss, r.val_loss) for r in second.run()]

    assert got == expected
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, second.model.get_parameter(name)), name
    files = [d / "model.safetensors" for d in (tmp_path / "whole", tmp_path / "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_resuming_something_else_is_refused(tmp_path: Path) -> None:
    first = open_run(tmp_path)
    list(first.run(should_stop=lambda: first.step >= 1))
    faster = replace(SPEC, training=replace(SPEC.training, learning_rate=0.5))
    with pytest.raises(UsageError, match="another config"):
        open_run(tmp_path, spec=faster, resume=True)
    with pytest.raises(UsageError, match="another config"):
        open_run(tmp_path, text=TEXT + "More.", resume=True)


def test_resuming_from_damage_or_nothing_is_an_error(tmp_path: Path) -> None:
    first = open_run(tmp_path)
    list(first.run(should_stop=lambda: first.step >= 1))
    state = tmp_path / training.STATE_FILE
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged"):
        open_run(tmp_path, resume=True)
    for directory in (tmp_path / "nowhere", tmp_path):
        state.unlink(missing_ok=True)
        with pytest.raises(WeightsError, match="nothing to resume"):
            open_run(directory, resume=True)


def test_a_model_is_not_overwritten(tmp_path: Path) -> None:
    list(open_run(tmp_path).run())
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="already holds a model"):
        open_run(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs more"):
        open_run(tmp_path, text="To be, or not to be.")


def test_a_vocabulary_needs_room_for_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 257"):
        training.train_vocabulary(TEXT, 256, tmp_path)


def test_bf16_autocast_learns_as_well(tmp_path: Path) -> None:
    placement = place("cpu", "bfloat16")
    run = training.open_run(SPEC, TEXT, tmp_path, placement=placement)
    losses = [report.loss for report in run.run()]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
