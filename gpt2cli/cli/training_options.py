"""The options of `gpt2 train`, and the plan of a run that they make."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2cli.cli import opening, options
from gpt2cli.cli.grouped import Group
from gpt2cli.config.lora import MATRICES, LoraConfig
from gpt2cli.config.spec import Spec, find_spec, known_names, load_spec
from gpt2cli.config.training import (
    OPTIMIZERS,
    SCHEDULES,
    TUNING_DROPOUT,
    DataConfig,
    TrainingConfig,
    fine_tuning,
)
from gpt2cli.errors import UsageError, did_you_mean
from gpt2cli.system.precision import parse

if TYPE_CHECKING:
    from gpt2cli.config.model import ModelConfig
    from gpt2cli.training.state import Plan

_FLOATS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Run(Group):
    """Run"""

    base: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            autocompletion=options.complete_model,
            help="The model to fine-tune: whatever --model of other commands may name.",
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            "-c",
            metavar="NAME",
            autocompletion=options.complete_config,
            help="Train from scratch: YAML file, or the name of a shipped config.",
        ),
    ] = None
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Repeat a run: its run.yaml, which other options change."
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in DIR exactly; it knows its settings and where its text was.",
        ),
    ] = False


@dataclass(frozen=True)
class Data(Group):
    """Data"""

    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            help="What to learn from: text, JSONL, CSV, Parquet, a directory of texts. May be "
            "given several times.",
        ),
    ] = None
    val: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What to validate on. [default: a tenth of the data, at most 1 MB]",
        ),
    ] = None
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="The field of a row that is its text; or prompt=NAME and completion=NAME.",
        ),
    ] = None
    mask_prompts: Annotated[
        bool | None,
        typer.Option("--mask-prompt/--no-mask-prompt", help="Learn only completions, or prompts."),
    ] = None

    def changed(self, before: DataConfig) -> DataConfig:
        """The data of a run with what is given in its place."""
        given: dict[str, Any] = {
            "files": self.data and tuple(map(os.path.abspath, self.data)),
            "validation": self.val and tuple(map(os.path.abspath, self.val)),
            "fields": self.field and tuple(self.field),
            "mask_prompts": self.mask_prompts,
        }
        return replace(before, **{k: value for k, value in given.items() if value is not None})


@dataclass(frozen=True)
class Lora(Group):
    """LoRA"""

    lora: Annotated[
        bool, typer.Option("--lora", help="Train an adapter in PEFT's layout, a small file.")
    ] = False
    lora_rank: Annotated[int | None, typer.Option(metavar="N", help="[default: 8]")] = None
    lora_alpha: Annotated[float | None, typer.Option(metavar="N", help="[default: 16]")] = None
    lora_dropout: Annotated[float | None, typer.Option(metavar="N", help="[default: 0.05]")] = None
    lora_targets: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"Matrices, with commas between. [default: {','.join(MATRICES)}]",
        ),
    ] = None

    def changed(self, before: LoraConfig | None) -> LoraConfig | None:
        """The adapter to train, if any. Raises `UsageError` for details without --lora."""
        targets = self.lora_targets and tuple(name.strip() for name in self.lora_targets.split(","))
        values: dict[str, Any] = {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "targets": targets,
        }
        given = {name: value for name, value in values.items() if value is not None}
        if not self.lora and before is None:
            if given:
                name = f"lora_{next(iter(given))}"
                raise UsageError(f"{name} needs lora", name, "lora")
            return None
        return replace(before or LoraConfig(), **given)


@dataclass(frozen=True)
class Recipe(Group):
    """Recipe"""

    epochs: Annotated[
        float | None,
        typer.Option(metavar="N", help="How often to learn everything. [default: 3 with --from]"),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Optimiser steps; with --resume, a new number of them in all, to whose end the "
            "learning rate then falls. [default: the epochs', or the config's]",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Sequences per step. [default: 16,384 tokens with --from, or the config's]",
        ),
    ] = None
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            metavar="N",
            help="Sequences at once; the rest is accumulated. [default: as memory allows]",
        ),
    ] = None
    optimizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of(*OPTIMIZERS),
            help="adamw; or muon, which learns faster from scratch. [default: adamw]",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Peak learning rate. [default: 5e-5, LoRA 2e-4, or the config's]"
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of(*SCHEDULES),
            help="cosine, or wsd: stable, then falling. [default: cosine]",
        ),
    ] = None
    warmup_steps: Annotated[
        int | None, typer.Option(metavar="N", help="[default: 5 % with --from, or the config's]")
    ] = None
    weight_decay: Annotated[
        float | None, typer.Option(metavar="N", help="[default: 0.01 with --from, or the config's]")
    ] = None
    dropout: Annotated[
        float | None, typer.Option(metavar="N", help="[default: 0.1 with --from, or the config's]")
    ] = None
    eval_interval: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Steps between validations. [default: 4 an epoch with --from, or the config's]",
        ),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Stop after N validations without a best. [default: 5 with --from]"
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Random seed. [default: the config's]")
    ] = None
    save_precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of(*_FLOATS),
            help="Precision on disk: fp32, bf16 or fp16. [default: fp32]",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Settings of `TrainingConfig` by name. Raises `UsageError` for two lengths."""
        if self.epochs is not None and self.steps is not None:
            raise UsageError("epochs and steps exclude each other", "epochs", "steps")
        names = (f.name for f in fields(TrainingConfig))
        values = {name: getattr(self, name, None) for name in names}
        known = {name: value for name, value in values.items() if value is not None}
        return {"epochs": None, **known} if "steps" in known else known


@dataclass(frozen=True)
class Computing(options.Machine):
    """Machine"""

    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=options.one_of("auto", "fp32", "bf16"),
            help="auto (bf16 on GPUs that have it, else fp32), fp32 or bf16.",
        ),
    ] = "auto"
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the blocks first: for long runs on a GPU.")
    ] = False
    activation_checkpointing: Annotated[
        bool,
        typer.Option(
            "--activation-checkpointing", help="Less memory: compute a third of it a second time."
        ),
    ] = False
    devices: Annotated[
        int, typer.Option(min=1, metavar="N", help="Share each step among N GPUs, or processes.")
    ] = 1
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Each of several devices holds only a part of the weights."),
    ] = False

    def check_devices(self, device: str, world: int, batch_size: int) -> None:
        """Raise `UsageError` for several processes that cannot be; there are `world` already."""
        if world > 1 and self.devices > 1:
            raise UsageError("devices has been decided by torchrun; leave it out", "devices")
        several = max(world, self.devices)
        if several == 1 and self.shard:
            raise UsageError("shard needs several devices", "shard", "devices")
        if several > batch_size:
            raise UsageError(
                f"batch_size {batch_size} is less than {several} processes", "batch_size"
            )
        if several > 1 and device not in ("cpu", "cuda"):
            raise UsageError(f"devices must be 1 on {device}; use device cuda", "devices", "device")
        if self.devices > 1 and device == "cuda":
            import torch

            if self.devices > (there := torch.cuda.device_count()):
                raise UsageError(f"devices must be at most {there}, the GPUs here", "devices")

    def given(self) -> dict[str, Any]:
        """Settings of `TrainingConfig` by name."""
        values = {
            "compile": self.compile_,
            "activation_checkpointing": self.activation_checkpointing,
        }
        return {name: True for name, value in values.items() if value}


def make_plan(
    before: Plan | None, run: Run, data: Data, lora: Lora, recipe: Recipe, computing: Computing
) -> Plan:
    """A new run's plan, or that of the run `before`, changed by what is given.

    Precisions are auto where they are not known yet. Raises `UsageError` for what is missing.
    """
    _check(before, run, data)
    plan = before if before is not None and run.config is None else _new(run, lora, computing)
    saved = before.save_precision if before else plan.save_precision
    if recipe.save_precision is not None:
        saved = parse(recipe.save_precision, _FLOATS, "save_precision")
    given = recipe.given() | computing.given()
    if before and run.config:  # a command may have set it then
        given = {"steps": before.training.steps} | given
    model = plan.model
    if recipe.dropout is not None:
        model = replace(model, drop_rate=recipe.dropout)
    return replace(
        plan,
        model=model,
        training=replace(plan.training, **given),
        precision=(before or plan).precision or "auto",
        save_precision=saved or "fp32",
        data=data.changed((before or plan).data),
        lora=lora.changed(plan.lora),
    )


def _check(before: Plan | None, run: Run, data: Data) -> None:
    """Raise `UsageError` for what is missing to begin or to resume, and for too much of it."""
    known = {"--from": run.base, "--config": run.config, "--run": run.run}
    given = [name for name, value in known.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if before is not None and before.data.files:
        return
    why = " to resume a run of an older version" if before else ""
    if not given:
        raise UsageError(f"train needs --from MODEL, or --config NAME to begin from scratch{why}")
    if not data.data and run.run is None:
        raise UsageError(f"train needs --data FILE{why}")


def _new(run: Run, lora: Lora, computing: Computing) -> Plan:
    """The plan of a new run, without what other options say."""
    from gpt2cli.training.state import Plan, read_plan

    if run.run is not None:
        return read_plan(run.run)
    if run.config is not None:
        spec = _load(run.config)
        if lora.changed(None) is not None:
            raise UsageError("lora needs a model to adapt: give it as base", "lora", "base")
        return Plan(spec.model, spec.training, "auto")
    assert run.base is not None
    model = fetched(run.base, computing)
    settings = fine_tuning(model.context_length, lora=lora.lora)
    return Plan(replace(model, drop_rate=TUNING_DROPOUT), settings, "auto", base=_lasting(run.base))


def fetched(base: str, computing: Computing) -> ModelConfig:
    """The architecture of a model whose files are here now."""
    model = opening.load_named(base, computing)
    opening.fetch(model)
    from gpt2cli.weights import checkpoint

    return checkpoint.read(model.directory)[0]


def _lasting(name: str) -> str:
    """A model's name, as it is understood from any directory."""
    path = Path(name).expanduser()
    return name if find_spec(name) or not path.exists() else os.path.abspath(path)


def _load(config: str) -> Spec:
    if config.endswith((".yaml", ".yml")):
        return load_spec(Path(config))
    if spec := find_spec(config):
        return spec
    raise UsageError(
        f"there is no config {config!r}; give a YAML file or a name of `gpt2 models`"
        f"{did_you_mean(config, known_names())}"
    )
