"""A run on a Ray cluster: Ray Train begins the processes, and begins them anew when one is lost.

Its directory and its texts are where all machines see them. The plan is that of a `run.yaml`:
`state.read_plan(Path("run.yaml"))`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2cli.training.run import train as work
from gpt2cli.training.state import STATE_FILE, Plan


def train(plan: Plan, directory: Path, workers: int, *, failures: int = 0, **scaling: Any) -> None:
    """Train a run to its end with some workers, and go on if there is one in the directory.

    After each of so many `failures` it goes on from what was saved. `scaling` are other arguments
    of Ray's `ScalingConfig`: `use_gpu`, `resources_per_worker`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = bool(scaling.get("use_gpu"))
    TorchTrainer(
        _work,
        train_loop_config={"plan": plan, "directory": Path(directory).absolute()},
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, **scaling),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=failures)),
    ).fit()


def _work(settings: dict[str, Any]) -> None:
    from ray.train.torch import get_device

    work(**settings, device=str(get_device()), resume=(settings["directory"] / STATE_FILE).exists())
