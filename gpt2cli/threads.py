"""How many threads compute on the CPU."""

from __future__ import annotations

import os


def thread_count() -> int:
    """As many as `device.limit_threads` or the user allows, but one per core: more only wait."""
    cores = core_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores) if asked.isdecimal() and int(asked) > 0 else cores


def core_count() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
