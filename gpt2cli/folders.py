"""Where the programs of the Hugging Face hub keep files on this disk, as its library decides it.

Importing the library would take a tenth of a short command; where it is loaded, it is asked.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def hub_cache() -> Path:
    """The cache of the hub's repositories, as HF_HUB_CACHE and HF_HOME say."""
    return _folder("HUB_CACHE", "hub")


def assets() -> Path:
    """What we derive from models, in the folder that is set aside for that (HF_ASSETS_CACHE)."""
    return _folder("ASSETS_CACHE", "assets") / "gpt2cli"


def _folder(name: str, default: str) -> Path:
    if library := sys.modules.get("huggingface_hub.constants"):
        return Path(getattr(library, f"HF_{name}"))
    usual = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
    home = _expanded(os.environ.get("HF_HOME", os.path.join(usual, "huggingface")))
    older = os.environ.get(f"HUGGINGFACE_{name}", os.path.join(home, default))
    return Path(_expanded(os.environ.get(f"HF_{name}", older)))


def _expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))
