"""A run on Ray ends with the bytes of one without it, whoever completes a row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import Run, error_of

pytestmark = pytest.mark.slow
BARD = ("-m", "bard", "--device", "cpu", "--seed", "3", "-n", "12")


@pytest.fixture(scope="module")
def ray() -> Any:
    """Ray, connected to nothing yet."""
    return pytest.importorskip("ray", exc_type=ImportError)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of several batches, some of them wrong."""
    path = tmp_path_factory.mktemp("ray") / "in.jsonl"
    with path.open("w") as file:
        for i in range(150):
            row: dict[str, Any] = {"prompt": f"{i} and", "id": i, "max_tokens": 1 + i % 30}
            row |= {"prompt": 5} if i == 70 else {"top_p": 7} if i == 71 else {}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def expected(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the rows become without Ray."""
    output = tmp_path_factory.mktemp("alone") / "out.jsonl"
    command = (sys.executable, "-m", "gpt2cli", "bulk", str(rows), "-o", str(output), *BARD)
    assert subprocess.run(command, check=False).returncode == 1  # two rows have an error
    return output.read_bytes()


def test_workers_complete_what_the_command_does(
    ray: Any, run_process: Run, rows: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run_process(
        "bulk", str(rows), "-o", str(output), *BARD, "--ray", "local", "--workers", "2", code=1
    )
    assert output.read_bytes() == expected


def test_a_killed_worker_changes_nothing(
    ray: Any, rows: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    run = (sys.executable, "-m", "gpt2cli", "bulk", str(rows), "-o", str(output), *BARD)
    process = subprocess.Popen([*run, "--ray", "local", "--workers", "2"])
    killed = kill_first_worker(process.pid)
    assert process.wait(200) == 1  # two rows have an error
    assert killed
    assert output.read_bytes() == expected


def kill_first_worker(pid: int) -> bool:
    """Kill a worker as soon as Ray has started one; False if it never does."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and psutil.pid_exists(pid):
        for child in psutil.Process(pid).children(recursive=True):
            if child.is_running() and "_Worker" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                return True
        time.sleep(0.02)
    return False


@pytest.fixture
def cluster(ray: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of one machine."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init("local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_dataset_is_completed_in_batches(cluster: Any, rows: Path, expected: bytes) -> None:
    """Rows of a dataset come in any order; a column has their numbers, which give the seeds."""
    from gpt2cli.serving.ray import Completer

    records = [json.loads(line) for line in rows.read_text().splitlines()][:60]
    dataset = cluster.data.from_items([record | {"row": i} for i, record in enumerate(records)])
    settings = {"model": "bard", "seed": 3, "max_tokens": 12}
    done = dataset.map_batches(
        Completer,
        fn_constructor_kwargs=settings,
        compute=cluster.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        batch_size=16,
    ).take_all()
    found = {row["id"]: row["completion"] for row in done}
    wanted = {row["id"]: row.get("completion") for row in map(json.loads, expected.splitlines())}
    assert found == {number: wanted[number] for number in found}
    assert len(found) == 60


def test_an_address_without_a_cluster_is_one_sentence(
    ray: Any, run_process: Run, rows: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.jsonl")
    done = run_process("bulk", str(rows), "-o", out, *BARD, "--ray", "127.0.0.1:1", code=2)
    assert "there is no Ray cluster at 127.0.0.1:1" in error_of(done)
    done = run_process("bulk", str(rows), "-o", out, *BARD, "--workers", "2", code=2)
    assert "--workers needs --ray" in error_of(done)
