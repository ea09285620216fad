"""What is said of a machine: memory, cores, a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2cli.system import machine


def test_the_machine_has_memory_and_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = machine.detect()
    assert 0 < found.memory_available <= found.memory_total
    assert found.cores >= 1
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine.memory() == (1_000_000, 600_000)
    (tmp_path / "memory.stat").write_text("anon 100000\nfile 300000\ninactive_file 250000\n")
    assert machine.memory() == (1_000_000, 850_000)  # what caches files is free on demand
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[0] > 1_000_000


def test_the_last_caches_are_added_up_once_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert (machine.cache_size() or 1 << 20) > 1 << 15
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    assert machine.cache_size() is None
    for core in range(4):  # two share a cache of level 3, as on the chiplets of some CPUs
        for level, size, shared in ((1, "32K", str(core)), (3, "16384K", f"{core // 2}")):
            index = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
            index.mkdir(parents=True)
            (index / "level").write_text(f"{level}\n")
            (index / "size").write_text(f"{size}\n")
            (index / "shared_cpu_list").write_text(f"{shared}\n")
    assert machine.cache_size() == 2 * 16384 * 1024


def test_a_gpu_is_what_the_drivers_tool_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771, 143000'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.detect()
    assert (found.device, found.name) == ("cuda", "NVIDIA H200")
    assert found.memory_total == 143771 * 2**20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.detect().device != "cuda"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.detect().device != "cuda"


def test_peak_memory_keeps_what_was_held() -> None:
    code = (
        "import numpy; from gpt2cli.system.machine import peak_memory; before = peak_memory();"
        "numpy.ones(256 << 20, dtype='u1'); print(peak_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert int(done.stdout) > 250 << 20
