"""The native CPU decoder: `engine.cpp`, built with the package where there is a compiler.

Nothing depends on it: without it the same text comes from `numpy_decoder`, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from gpt2cli.decoders.native import abi
from gpt2cli.errors import DeviceError

# Levels of instructions, as engine.cpp numbers them.
ARM64 = platform.machine() in ("aarch64", "arm64")
LEVELS = ("baseline", "dotprod") if ARM64 else ("baseline", "avx2", "avx512", "amx")

TYPES = ("fp32", "bf16", "fp16", "int8", "int4")  # of weights, as types.h numbers them


def available() -> bool:
    """Whether the library was built and can be loaded."""
    return not why_not()


def why_not() -> str:
    """Why it is not available, as a clause; empty if it is."""
    found = _load()
    return found if isinstance(found, str) else ""


def library() -> ctypes.CDLL:
    """The library, with its functions declared. Raises `DeviceError` if it is not available."""
    found = _load()
    if isinstance(found, str):
        raise DeviceError(f"the native engine is not available: {found}")
    return found


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    directory = Path(__file__).parent
    paths = [directory / f"_engine{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return "it was not built (no C++ compiler when gpt2cli was installed)"
    try:
        library = ctypes.CDLL(str(path))
        abi.declare(library)
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error})"
    return library
