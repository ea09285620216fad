"""Files mapped into memory, whose pages come there while something else is done.

Without that each 64 kB of a file that is read for the first time interrupts the engine, which
makes the first token take twice as long.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from threading import Thread

_POPULATE_READ = 22  # Linux's MADV_POPULATE_READ, from 5.14 on; before, an error without effect
_begun: dict[tuple[int, ...], mmap.mmap] = {}  # one at most


def begin(path: Path) -> None:
    """Map a file that will soon be read, and bring its pages into memory meanwhile."""
    if not path.is_file():  # to open a FIFO would wait for who writes into it
        return
    with suppress(OSError, ValueError), path.open("rb") as file:  # ValueError: it is empty
        _begun.clear()
        mapped = _begun[_identity(file)] = _map(file)
        bring_in(mapped, ctypes.addressof(ctypes.c_char.from_buffer(mapped)), len(mapped))


def open_mapped(path: Path) -> mmap.mmap:
    """A file in memory, copied where it is written to; as it was begun, unless it changed since.

    Raises `OSError`, and `ValueError` for an empty file.
    """
    with path.open("rb") as file:
        return _begun.pop(_identity(file), None) or _map(file)


def bring_in(owner: object, address: int, size: int) -> None:
    """Let the system bring a range of `owner`'s memory in, without waiting for it."""
    if sys.platform != "linux":
        return

    def populate(_: object) -> None:  # which keeps the memory
        # Not by `mmap.madvise`, which would hold Python's lock.
        place, length = ctypes.c_void_p(address), ctypes.c_size_t(size)
        ctypes.CDLL(None).madvise(place, length, _POPULATE_READ)

    Thread(target=populate, args=(owner,), daemon=True).start()


def _map(file: BufferedReader) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _identity(file: BufferedReader) -> tuple[int, ...]:
    stat = os.fstat(file.fileno())
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
