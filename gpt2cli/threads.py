"""How many threads compute on the CPU."""

from __future__ import annotations

import os


def thread_count() -> int:
    """As many as `device.limit_threads` or the user allows, but one per core: more only wait."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores) if asked.isdecimal() and int(asked) > 0 else cores
