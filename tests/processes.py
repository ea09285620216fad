"""What processes that train together do in tests; they import this by its name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt2cli.errors import GPT2CLIError
from gpt2cli.training import run as runs
from gpt2cli.training.distributed import Group, joined
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
