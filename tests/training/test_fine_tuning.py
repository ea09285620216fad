"""Fine-tuning a given model: what a step learns, exact resumption, early ends, adapters."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters import peft_logits
from helpers import TEXT, random_model
from transformers import GPT2LMHeadModel

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import DataConfig, TrainingConfig, fine_tuning, paced
from gpt2cli.errors import UsageError
from gpt2cli.model.lora import merged_state
from gpt2cli.training import run as runs
from gpt2cli.training.optimizer import DECAY, learning_rate
from gpt2cli.training.state import STATE_FILE, Plan, read_plan
from gpt2cli.training.trainer import Report, Trainer, evaluate
from gpt2cli.weights import checkpoint
from gpt2cli.weights.names import PREFIX, hub_name

ROWS = [
    {"prompt": "Who " + "is it? " * (i % 3), "completion": "It is the east. " * (1 + i % 4)}
    for i in range(40)
]
LORA = LoraConfig(rank=2, alpha=4.0, dropout=0.05)


@pytest.fixture
def plan(tiny_directory: Path, tiny_config: ModelConfig, tmp_path: Path) -> Plan:
    """Prompts and completions for the tiny model, in batches that do not divide an epoch."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = TrainingConfig(
        epochs=2, batch_size=4, learning_rate=1e-3, warmup_steps=2, eval_interval=3, beta2=0.999
    )
    return Plan(tiny_config, settings, data=DataConfig((str(path),)), base=str(tiny_directory))


def opened(plan: Plan, directory: Path, resume: bool = False) -> AbstractContextManager[Trainer]:
    return runs.open_run(plan, directory, resume=resume)


def trained(
    plan: Plan, directory: Path, *, resume: bool = False, stop_after: int = 10**9
) -> tuple[Trainer, list[Report]]:
    with opened(plan, directory, resume) as run:
        return run, list(run.run(should_stop=lambda: run.step >= stop_after))


def with_settings(plan: Plan, **settings: Any) -> Plan:
    return replace(plan, training=replace(plan.training, **settings))


def learned(name: str, values: torch.Tensor) -> torch.Tensor:
    """All but the biases of keys, which change no score: AdamW makes steps of their rounding."""
    if name.endswith("qkv.bias"):
        queries, _, others = values.chunk(3)
        return torch.cat([queries, others])
    return values


def losses(reports: list[Report]) -> list[tuple[float | None, float | None]]:
    return [(report.loss, report.val_loss) for report in reports]


@pytest.mark.parametrize("micro", [1, 3])
def test_accumulated_steps_are_those_of_the_whole_batch(
    plan: Plan, tmp_path: Path, micro: int
) -> None:
    """Rows learn different numbers of tokens, so that means of means would differ."""
    plan = replace(plan, model=replace(plan.model, drop_rate=0.0))
    plan = with_settings(plan, batch_size=8, epochs=None, steps=5)
    whole, first = trained(with_settings(plan, micro_batch_size=8), tmp_path / "whole")
    parts, second = trained(with_settings(plan, micro_batch_size=micro), tmp_path / "parts")
    assert len({int(n) for n in whole.corpus.batches.rows.targets}) > 2  # type: ignore[attr-defined]
    assert [r.loss for r in first[1:]] == pytest.approx([r.loss for r in second[1:]], rel=1e-5)
    for name, p in whole.model.named_parameters():
        difference = (p - parts.model.get_parameter(name)).abs()
        assert learned(name, difference).max() < 5e-5, name


def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_accumulated(
    plan: Plan, tmp_path: Path
) -> None:
    plan = with_settings(
        replace(plan, model=replace(plan.model, drop_rate=0.0)), batch_size=8, grad_clip=1e9
    )
    found = []
    for micro in (8, 1):
        with opened(with_settings(plan, micro_batch_size=micro), tmp_path / str(micro)) as run:
            run._optimise()
            found.append({n: p.grad for n, p in run.model.named_parameters()})
    for name, one in found[0].items():
        other = found[1][name]
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() <= 1e-6 * max(1, one.abs().max()), name


def test_a_step_is_that_of_adamw_on_the_mean_loss_of_what_is_learned(
    plan: Plan, tmp_path: Path
) -> None:
    """Against plain PyTorch and transformers' model, row by row without packing."""
    plan = with_settings(replace(plan, model=replace(plan.model, drop_rate=0.0)), warmup_steps=0)
    with opened(plan, tmp_path / "run") as run:
        batch = run.corpus.batches.batch(0)
        loss = run._optimise().item()
    theirs = GPT2LMHeadModel.from_pretrained(plan.base).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
    none = torch.zeros_like(ids[:, 1:])
    segments = none if batch.segments is None else torch.from_numpy(batch.segments)
    total = torch.zeros(())
    for row in range(len(ids)):
        for number in segments[row].unique():
            own = (segments[row] == number).nonzero()[:, 0]
            logits = theirs(ids[None, row, own]).logits[0]
            each = F.cross_entropy(logits, ids[row, own + 1], reduction="none")
            total = total + each[mask[row, own]].sum()
    mean = total / mask.sum()
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    mean.backward()
    groups = [
        {"params": [p for p in theirs.parameters() if (p.dim() >= 2) == decays], "weight_decay": wd}
        for decays, wd in ((True, 0.1), (False, 0.0))
    ]
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999)).step()
    for name, p in run.model.named_parameters():
        other = theirs.get_parameter(PREFIX + hub_name(name))
        assert learned(name, (p - other).abs()).max() < 2e-5, name


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_run_resumed_in_mid_epoch_is_the_run_never_stopped(
    plan: Plan, tmp_path: Path, lora: LoraConfig | None, stop_after: int
) -> None:
    plan = replace(plan, lora=lora)
    whole, reports = trained(plan, tmp_path / "whole")
    assert reports[0].step == 0
    _, first = trained(plan, tmp_path / "parts", stop_after=stop_after)
    second, rest = trained(plan, tmp_path / "parts", resume=True)
    assert losses(first + rest) == losses(reports)
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, second.model.get_parameter(name)), name
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_finished_run_can_be_given_more_epochs(plan: Plan, tmp_path: Path) -> None:
    run, _ = trained(plan, tmp_path / "run")
    longer, reports = trained(with_settings(plan, epochs=4), tmp_path / "run", resume=True)
    assert reports[0].step == run.step + 1
    assert longer.step == longer.settings.steps > run.step
    assert run.step / 2 == pytest.approx(longer.step / 4, abs=1)


def test_the_directory_of_a_full_run_is_a_model_with_its_vocabulary(
    plan: Plan, tmp_path: Path, tiny_directory: Path
) -> None:
    run, reports = trained(plan, tmp_path / "run")
    first, best = reports[0].val_loss, min(r.val_loss for r in reports if r.val_loss is not None)
    assert first is not None
    assert best < first - 0.5
    saved = checkpoint.load(tmp_path / "run")
    assert evaluate(saved, run.corpus.validation) == pytest.approx(best, abs=1e-5)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "run" / name).read_bytes() == (tiny_directory / name).read_bytes()


def test_the_directory_of_a_lora_run_is_an_adapter_that_peft_reads(
    plan: Plan, tmp_path: Path, tiny_directory: Path
) -> None:
    run, reports = trained(
        with_settings(replace(plan, lora=LORA), learning_rate=1e-2), tmp_path / "run"
    )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert reports[-1].best
    x = torch.arange(20)[None]
    ours = run.model.eval()(x).detach()
    torch.testing.assert_close(
        peft_logits(tiny_directory, tmp_path / "run", x), ours, atol=1e-4, rtol=1e-4
    )
    plain = checkpoint.load(tiny_directory)
    frozen = {name: p for name, p in merged_state(run.model).items() if p.dim() < 2}
    assert all(torch.equal(p, plain.get_parameter(name)) for name, p in frozen.items())


def test_training_ends_after_validations_without_a_best(plan: Plan, tmp_path: Path) -> None:
    """A learning rate at which it only gets worse."""
    plan = with_settings(plan, epochs=50, learning_rate=0.3, patience=2, eval_interval=1)
    run, reports = trained(plan, tmp_path / "run")
    assert run.finished
    assert run.step < run.settings.steps
    bests = [report.step for report in reports if report.best]
    assert run.step == bests[-1] + 2
    again, none = trained(plan, tmp_path / "run", resume=True)
    assert none == []
    assert again.finished
    _, more = trained(with_settings(plan, epochs=60), tmp_path / "run", resume=True)
    assert more


def test_activation_checkpointing_changes_nothing_that_is_learned(
    plan: Plan, tmp_path: Path
) -> None:
    plan = replace(plan, model=replace(plan.model, drop_rate=0.1))
    _, plain = trained(plan, tmp_path / "plain", stop_after=3)
    checkpointed = with_settings(plan, activation_checkpointing=True)
    _, other = trained(checkpointed, tmp_path / "other", stop_after=3)
    assert [r.loss for r in plain[1:]] == pytest.approx([r.loss for r in other[1:]], rel=1e-6)


def test_a_run_can_be_repeated_from_what_it_wrote(plan: Plan, tmp_path: Path) -> None:
    run, reports = trained(replace(plan, lora=LORA), tmp_path / "one")
    again = read_plan(tmp_path / "one" / "run.yaml")
    assert again == run.plan
    _, repeated = trained(again, tmp_path / "two")
    assert losses(repeated) == losses(reports)


def test_what_a_run_learned_cannot_change_when_it_goes_on(plan: Plan, tmp_path: Path) -> None:
    trained(replace(plan, lora=LORA), tmp_path / "run", stop_after=1)
    for changed, name in (
        (plan, "rank was 2"),
        (replace(plan, lora=replace(LORA, rank=3)), "rank was 2 .* 3"),
        (replace(plan, lora=LORA, data=replace(plan.data, mask_prompts=False)), "mask_prompts was"),
    ):
        with pytest.raises(UsageError, match=name):
            trained(changed, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STATE_FILE).exists()


def test_whole_prompts_can_be_learned_too(plan: Plan, tmp_path: Path) -> None:
    with opened(plan, tmp_path / "masked") as run:
        masked = run.corpus.targets
    with opened(
        replace(plan, data=replace(plan.data, mask_prompts=False)), tmp_path / "all"
    ) as run:
        assert run.corpus.targets > masked + len(ROWS) // 2


def test_validation_may_have_a_file_of_its_own(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text(TEXT)
    plan = replace(plan, data=replace(plan.data, validation=(str(tmp_path / "val.txt"),)))
    with opened(plan, tmp_path / "run") as run:
        ids = run.tokenizer.encode(TEXT)
        assert int(run.corpus.validation.targets.sum()) == len(ids) + 1  # and its end-of-text
        assert run.corpus.validation_bytes == len(TEXT.encode())


def test_the_pace_suits_the_number_of_sequences() -> None:
    settings = paced(fine_tuning(1024, lora=False), 295, frozenset())
    assert settings.batch_size == 16
    assert settings.steps == 56  # 3 · 295 / 16
    assert settings.warmup_steps == 10
    assert settings.eval_interval == 5
    assert settings.min_learning_rate == pytest.approx(5e-6)
    assert paced(settings, 10**6, frozenset()).warmup_steps == 9375
    assert fine_tuning(1024, lora=True).learning_rate == 2e-4
    kept = paced(replace(settings, warmup_steps=3), 295, frozenset({"warmup_steps"}))
    assert kept.warmup_steps == 3


def test_warm_up_stable_decay_falls_only_at_the_end() -> None:
    settings = TrainingConfig(
        steps=1000, warmup_steps=10, learning_rate=1.0, min_learning_rate=0.0, schedule="wsd"
    )
    rates = [learning_rate(step, settings) for step in range(1000)]
    falls = 1000 - round(990 * DECAY)
    assert rates[9 : falls - 2] == [1.0] * (falls - 11)
    assert rates[-1] == pytest.approx(0.0)
    halfway = falls + (1000 - falls) // 2
    assert rates[halfway] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(UsageError, match="schedule must be one of cosine, wsd"):
        TrainingConfig(schedule="linear")


def test_random_models_stay_as_they_are(tiny_config: ModelConfig, tiny_directory: Path) -> None:
    """No run of the others has changed the files that it began with."""
    for name, p in random_model(tiny_config).named_parameters():
        assert torch.equal(p, checkpoint.load(tiny_directory).get_parameter(name)), name


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(plan: Plan, tmp_path: Path) -> None:
    plan = replace(plan, model=replace(plan.model, drop_rate=0.0))
    _, plain = trained(plan, tmp_path / "plain", stop_after=3)
    run, compiled = trained(with_settings(plan, compile=True), tmp_path / "fast", stop_after=3)
    assert run.model.blocks[0]._compiled_call_impl is not None
    assert [r.loss for r in plain[1:]] == pytest.approx([r.loss for r in compiled[1:]], rel=1e-4)
    checkpoint.load(tmp_path / "fast")
