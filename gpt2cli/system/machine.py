"""What this machine has, found out without torch: memory, cores, a GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and its memory in bytes; on a CPU, and on Apple's GPUs, that is the RAM."""

    device: str
    name: str
    memory_total: int
    memory_available: int
    cores: int


def detect() -> Machine:
    """The device that `--device auto` means here: a CUDA GPU, else Apple's, else the CPU.

    Asking for a GPU starts a program, so ask once.
    """
    gpu = _nvidia()
    if gpu:
        return gpu
    total, available = memory()
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine("mps" if apple else "cpu", cpu_name(), total, available, cores or 1)


def memory() -> tuple[int, int]:
    """Bytes of RAM in all and available now, within the limit of a container."""
    import psutil

    ram = psutil.virtual_memory()
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is None or limit >= ram.total:
        return ram.total, ram.available
    # Files that were read, such as weights, count as used; the kernel drops them on demand.
    held = max(0, (used or 0) - _file_cache())
    return limit, min(ram.available, max(0, limit - held))


def peak_memory() -> int:
    """The most bytes of RAM that this process has held, pages of mapped weights included."""
    # Unlike getrusage, Linux does not count here what the process was forked from.
    if peak := _field(Path("/proc/self/status"), "VmHWM"):
        return int(peak.split()[0]) << 10
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest << 10


def cpu_name() -> str:
    """The maker's name of the CPU where the system reports it, else its architecture."""
    if sys.platform == "darwin":
        tool = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(tool, capture_output=True, text=True, check=False).stdout
    else:
        name = _field(Path("/proc/cpuinfo"), "model name")
    return name.strip() or platform.processor() or platform.machine()


def cache_size() -> int | None:
    """Bytes of the CPU's last-level caches together; None if the system does not report them."""
    if sys.platform == "darwin":
        tool = ["/usr/sbin/sysctl", "-n", "hw.l3cachesize", "hw.perflevel0.l2cachesize"]
        told = subprocess.run(tool, capture_output=True, text=True, check=False).stdout.split()
        return max(map(int, told), default=0) or None
    sizes: dict[tuple[int, str], int] = {}  # by level, and the cores that share the cache
    for cache in _CPUS.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = _number(cache / "level"), _text(cache / "size").strip()
        if level and size.endswith("K"):
            sizes[level, _text(cache / "shared_cpu_list")] = int(size[:-1]) << 10
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last) or None


def _field(path: Path, name: str) -> str:
    """The first value of a "name: value" file of Linux; empty if there is none."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    """All of a file; empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _file_cache() -> int:
    """Bytes of the container's memory that cache files not used recently."""
    lines = _text(_CGROUP / "memory.stat").splitlines()
    counts = dict(line.split(maxsplit=1) for line in lines)
    return int(counts.get("inactive_file", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control group, or "max"
        return None


def _nvidia() -> Machine | None:
    """The first NVIDIA GPU that CUDA may use, as its driver's own tool describes it."""
    tool = shutil.which("nvidia-smi")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if tool is None or first in ("", "-1"):
        return None
    query = "--query-gpu=name,memory.total,memory.free"
    try:
        done = subprocess.run(
            [tool, f"--id={first}", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        name, total, free = done.stdout.splitlines()[0].rsplit(",", 2)
        return Machine("cuda", name.strip(), int(total) << 20, int(free) << 20, os.cpu_count() or 1)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
