"""Files written whole or not at all."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVER_SECONDS = 24 * 3600


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place only if the block succeeds."""
    discard_leftovers(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def discard_leftovers(directory: Path, name: str | None = None) -> int:
    """Delete what processes that were killed left of `atomic`, of one file or all of them.

    Those of other machines, and of numbers that have a process again, go after a day. Returns
    the bytes freed.
    """
    pattern = ".+" if name is None else re.escape(name)
    temporary = re.compile(rf"\.{pattern}\.(?:.*\.)?\d+\.tmp")
    ours = re.compile(rf"\.{re.escape(platform.node())}\.(\d+)\.tmp$")
    freed = 0
    for path in directory.glob(".*.tmp"):
        if not temporary.fullmatch(path.name):
            continue
        try:
            stat, own = path.lstat(), ours.search(path.name)
            is_old = stat.st_mtime < time.time() - LEFTOVER_SECONDS
            if is_old or (own and not _is_running(int(own[1]))):
                path.unlink()
                freed += stat.st_size
        except OSError:  # another process was faster
            continue
    return freed


def _is_running(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)
