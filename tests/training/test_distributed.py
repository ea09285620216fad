"""Several processes train as one does, in every way; and end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import TEXT
from processes import Job, do, measure, work
from runs import PLAN

from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import DataConfig
from gpt2cli.errors import UsageError
from gpt2cli.training import fitting
from gpt2cli.training.distributed import ALONE, Group, joined
from gpt2cli.training.launch import launch
from gpt2cli.training.state import STATE_FILE, Plan, read_position, to_yaml
from gpt2cli.weights.safetensors import read_safetensors

ROWS = [
    {"prompt": "Who " + "is it? " * (i % 3), "completion": "It is the east. " * (1 + i % 4)}
    for i in range(40)
]


def with_settings(plan: Plan, **settings: Any) -> Plan:
    return replace(plan, training=replace(plan.training, **settings))


@pytest.fixture(scope="module")
def plans(
    tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, tiny_config: ModelConfig
) -> dict[str, Plan]:
    """Rows that learn different numbers of tokens, with dropout, in two micro-batches or more."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    plan = with_settings(
        replace(PLAN, data=DataConfig((str(path),)), model=replace(PLAN.model, context_length=32)),
        steps=5,
        batch_size=8,
        micro_batch_size=2,
        eval_interval=2,
    )
    adapted = replace(plan, model=replace(tiny_config, drop_rate=0.1), base=str(tiny_directory))
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.05)
    uneven = with_settings(plan, batch_size=5, micro_batch_size=1)
    return {
        "full": plan,
        # Of 5 rows one process learns 2 and the other 3: whatever the micro-batches.
        "uneven": replace(uneven, model=replace(plan.model, drop_rate=0.0)),
        "lora": with_settings(replace(adapted, lora=lora), activation_checkpointing=True),
        "bf16": replace(plan, precision="bf16"),
        "muon": with_settings(plan, optimizer="muon"),
        "broken": with_settings(plan, learning_rate=1e300),
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(plans: dict[str, Plan], directory: Path) -> Path:
    """The runs of one process, some of which have stopped after 3 of 5 steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several processes has
    for name, plan in plans.items():
        do(Job(plan, directory / f"alone-{name}"), ALONE)
    for name in ("full", "lora"):
        do(Job(plans[name], directory / f"first-{name}", stop_after=3), ALONE)
    torch.set_num_threads(before)
    return directory


KINDS = {"ddp": False, "fsdp": True}
RUNS = [
    *[(kind, name) for kind in KINDS for name in ("full", "lora", "broken")],
    ("ddp", "uneven"),
    ("ddp", "bf16"),
    ("ddp", "muon"),
]
RESUMED = [("ddp", "full"), ("fsdp", "lora")]


@pytest.fixture(scope="module")
def together(plans: dict[str, Plan], alone: Path) -> Path:
    """The same runs by two processes, and the ends of those that one has begun."""
    jobs = [Job(plans[name], alone / f"{kind}-{name}", KINDS[kind]) for kind, name in RUNS]
    for kind, name in RESUMED:
        shutil.copytree(alone / f"first-{name}", alone / f"rest-{kind}-{name}")
        jobs.append(Job(plans[name], alone / f"rest-{kind}-{name}", KINDS[kind], resume=True))
    for kind, shard in KINDS.items():
        jobs.append(Job(plans["full"], alone / f"begun-{kind}", shard, stop_after=3))
    launch(work, 2, jobs)
    return alone


def state(directory: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(directory / STATE_FILE)[0]


def seen(directory: Path, rank: int = 0) -> list[Any]:
    lines = Path(f"{directory}.{rank}.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(directory: Path, other: Path, *, within: float = 1e-5, log: bool = False) -> None:
    """The same weights, moments and files, but for the order of sums."""
    ours, theirs = state(directory), state(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() <= within, name
    files = {path.name for path in directory.iterdir()}
    assert files | ({"log.jsonl"} if log else set()) == {path.name for path in other.iterdir()}


@pytest.mark.parametrize(("kind", "name"), [run for run in RUNS if run[1] != "broken"])
def test_two_processes_train_as_one_does(together: Path, kind: str, name: str) -> None:
    one, two = together / f"alone-{name}", together / f"{kind}-{name}"
    # Products of bf16 differ in their third digit with the order of sums.
    bf16 = name == "bf16"
    assert_same(one, two, within=2e-3 if bf16 else 1e-5)
    for mine, theirs, other in zip(seen(one), seen(two), seen(two, 1), strict=True):
        assert theirs["loss"] == other["loss"]
        assert theirs["step"] == mine["step"]
        for key in ("loss", "val_loss", "bits_per_byte"):
            if mine[key] is not None:
                assert theirs[key] == pytest.approx(mine[key], rel=1e-2 if bf16 else 1e-5)


@pytest.mark.parametrize(("kind", "name"), RESUMED)
def test_a_run_of_one_process_goes_on_in_two(together: Path, kind: str, name: str) -> None:
    assert_same(together / f"alone-{name}", together / f"rest-{kind}-{name}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_two_processes_goes_on_in_one(
    plans: dict[str, Plan], together: Path, kind: str
) -> None:
    assert [report["step"] for report in seen(together / f"begun-{kind}")] == [1, 2, 3]
    do(Job(plans["full"], together / f"begun-{kind}", resume=True), ALONE)
    assert_same(together / "alone-full", together / f"begun-{kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_end_where_a_number_is_not_finite(together: Path, kind: str) -> None:
    one = seen(together / "alone-broken")
    assert "the loss is not finite at step" in one[-1]
    for rank in range(2):
        assert seen(together / f"{kind}-broken", rank)[-1] == one[-1].replace("alone", kind)


def test_one_process_begins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as group:
        assert group == Group()
        assert not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="RANK must be a number"), joined("cpu"):
        pass


def test_memory_is_counted_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "available", lambda _: 1 << 40)
    plan, one = with_settings(PLAN, batch_size=8), PLAN.model
    several = Group(0, 4, 4)
    assert fitting.fitted(plan, one, "cpu", several).training.micro_batch == 2
    assert fitting.free_memory("cpu", several) == 1 << 38
    assert fitting.free_memory("cuda:0", several) == 1 << 40
    large = replace(PLAN.model, emb_dim=1600, n_heads=25, n_layers=48)
    plan = with_settings(PLAN, batch_size=4, micro_batch_size=1)
    whole, part = (fitting.needed(plan, large, "cuda", replace(several, shard=s)) for s in (0, 1))
    assert part < 0.35 * whole
    uneven = with_settings(PLAN, batch_size=6)
    with pytest.raises(UsageError, match="muon needs whole matrices"):
        fitting.fitted(
            with_settings(PLAN, optimizer="muon"), one, "cpu", Group(0, 4, 4, shard=True)
        )
    with pytest.raises(UsageError, match="batch_size 6 must be a multiple of the 4 processes"):
        fitting.fitted(uneven, one, "cpu", replace(several, shard=True))


CONFIG = """
{vocab_size: 300, context_length: 16, emb_dim: 24, n_heads: 2, n_layers: 1, qkv_bias: false,
 training: {steps: 100000, batch_size: 4, warmup_steps: 1, eval_interval: 5}}
"""


@contextmanager
def running(place: Path, *extra: str, launcher: tuple[str, ...] = ()) -> Iterator[Any]:
    """The command with two processes, once it has validated; whatever is left of it is killed."""
    (place / "mine.yaml").write_text(CONFIG)
    (place / "text").write_text(TEXT)
    options = "--config mine.yaml --data text --out model --device cpu --json"
    command = [sys.executable, *launcher, "-m", "gpt2cli", "train", *options.split(), *extra]
    process = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    family = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["best"]:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        yield process, [child for child in family if "spawn_main" in " ".join(child.cmdline())]
    finally:
        process.kill()
        for child in family:
            if child.is_running():
                child.kill()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def resumed(place: Path, *extra: str) -> list[int]:
    """The steps of two more, after those that were saved."""
    steps = read_position(place / "model").step + 2
    command = "train --out model --device cpu --json --resume --steps"
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", *command.split(), str(steps), *extra],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return [json.loads(line)["step"] - steps for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_killed_process_ends_all_in_one_sentence_and_the_run_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, "--devices", "2") as (process, (_, second)):
        second.kill()
        _, errors = process.communicate(timeout=60)
        lines = [line for line in errors.splitlines() if "bits/byte" not in line]
        assert lines == [
            "gpt2: process 1 of 2 was killed by SIGKILL, and the others have ended; --resume goes "
            "on from what was saved last"
        ]
        assert process.returncode == 1
    assert resumed(tmp_path) == [-1, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_of_all(tmp_path: Path, number: int, code: int) -> None:
    with running(tmp_path, "--devices", "2") as (process, workers):
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        step = read_position(tmp_path / "model").step
        assert errors.count(f"gpt2: stopped after step {step} and saved; --resume") == 1
        assert "Traceback" not in errors
        assert not any(worker.is_running() for worker in workers)
    assert resumed(tmp_path, "--devices", "2", "--shard") == [-1, 0]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all(tmp_path: Path) -> None:
    with running(tmp_path, "--devices", "2") as (process, (_, second)):
        second.terminate()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 143
        assert "and saved; --resume" in errors


@pytest.mark.slow
def test_no_process_outlives_the_one_that_began_it(tmp_path: Path) -> None:
    with running(tmp_path, "--devices", "2") as (process, workers):
        process.kill()
        wait_for(lambda: not any(worker.is_running() for worker in workers))


@pytest.mark.slow
def test_four_processes_train_as_one_does(plans: dict[str, Plan], alone: Path) -> None:
    jobs = [Job(plans["full"], alone / f"four-{kind}", shard) for kind, shard in KINDS.items()]
    launch(work, 4, jobs)
    for kind in KINDS:
        assert_same(alone / "alone-full", alone / f"four-{kind}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured as Linux counts it")
@pytest.mark.parametrize("shard", [False, True])
def test_the_estimate_is_near_the_peak_of_one_process(tmp_path: Path, shard: bool) -> None:
    config = ModelConfig(2048, 128, emb_dim=512, n_heads=8, n_layers=8)
    launch(measure, 2, config, shard, tmp_path / "ratio")
    assert float((tmp_path / "ratio").read_text()) == pytest.approx(1, abs=0.15)


RAY = {"RAY_USAGE_STATS_ENABLED": "0"}
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.slow
def test_torchrun_runs_the_same_command(tmp_path: Path) -> None:
    with running(tmp_path, launcher=(*TORCHRUN, "--standalone")) as (process, _):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert errors.count("and saved; --resume") == 1
    assert resumed(tmp_path) == [-1, 0]


@pytest.mark.slow
def test_torchrun_begins_anew_where_a_process_was_killed(tmp_path: Path) -> None:
    restarts = ("--standalone", "--max-restarts", "1")
    with running(tmp_path, launcher=(*TORCHRUN, *restarts)) as (process, _):
        torchrun = psutil.Process(process.pid)
        before = torchrun.children()
        before[-1].kill()
        wait_for(lambda: len(torchrun.children()) == 2 and not {*before} & {*torchrun.children()})
        step = read_position(tmp_path / "model").step
        wait_for(lambda: read_position(tmp_path / "model").step > step)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")
def test_ray_trains_a_run_and_goes_on_with_it(plans: dict[str, Plan], alone: Path) -> None:
    """In a process of its own, as Ray starts others that stay."""
    directory = alone / "ray"
    (alone / "plan.yaml").write_text(to_yaml(plans["full"]))
    script = (
        "import sys; from pathlib import Path; from gpt2cli.training.ray import train; "
        "from gpt2cli.training.state import read_plan; "
        "train(read_plan(Path(sys.argv[1])), Path(sys.argv[2]), 2)"
    )
    command = [sys.executable, "-c", script, str(alone / "plan.yaml"), str(directory)]
    subprocess.run(command, check=True, timeout=200, cwd=alone, env={**os.environ, **RAY})
    assert_same(alone / "alone-full", directory, log=True)
