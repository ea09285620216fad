"""What processes that train together do in tests; they import this by its name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import GPT2CLIError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system.machine import peak_memory
from gpt2cli.training import fitting
from gpt2cli.training import run as runs
from gpt2cli.training.batches import Samples
from gpt2cli.training.distributed import Group, joined
from gpt2cli.training.loss import summed
from gpt2cli.training.optimizer import make_optimizer
from gpt2cli.training.state import Plan


@dataclass(frozen=True)
class Job:
    """A run, or a part of one."""

    plan: Plan
    directory: Path
    shard: bool = False
    resume: bool = False
    stop_after: int = 10**9


def work(jobs: list[Job]) -> None:
    """Do some jobs in one group after another."""
    with joined("cpu") as group:
        for job in jobs:
            do(job, replace(group, shard=job.shard))


def do(job: Job, group: Group) -> None:
    """One job; what each process has seen of it lies beside its directory."""
    seen: list[object] = []
    opened = runs.open_run(job.plan, job.directory, resume=job.resume, group=group)
    try:
        with opened as run:
            # Only the last process wants to stop, which all have to.
            is_last = group.rank == group.world - 1
            for report in run.run(lambda: is_last and run.step >= job.stop_after):
                seen.append(asdict(report))
    except GPT2CLIError as error:
        seen.append(str(error))
    with open(f"{job.directory}.{group.rank}.json", "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(each) + "\n" for each in seen)


def measure(config: ModelConfig, shard: bool, result: Path) -> None:
    """Two steps of training: the estimate of the memory of one process, by its measured peak."""
    if shard:
        fitting.save_memory()
    with joined("cpu", shard=shard) as group:
        _steps(ModelConfig(64, 8, 16, 2, 2), group)
        before = peak_memory()
        estimate = _steps(config, group)
        if group.is_main:
            result.write_text(str(estimate / (peak_memory() - before)))


def _steps(config: ModelConfig, group: Group) -> int:
    plan = Plan(config, TrainingConfig(batch_size=4, micro_batch_size=2))
    model = GPT2(config).init_weights().train()
    learner = group.learner(model, summed)
    optimizer = make_optimizer(model, plan.training, plan.precision)
    ids = np.arange(3 * config.context_length) % config.vocab_size
    batches = Samples(ids, config.context_length, 4, 0)
    for step in range(2):
        optimizer.zero_grad(set_to_none=True)
        learner(batches.batch(step, group.rank, group.world)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return fitting.needed(plan, config, "cpu", group)
