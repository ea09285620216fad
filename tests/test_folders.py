"""The folders are those of huggingface_hub, without its import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2cli import folders

BOTH = """
import sys
from gpt2cli import folders
ours = folders.hub_cache(), folders.assets()
assert "huggingface_hub" not in sys.modules
from huggingface_hub import constants
from pathlib import Path
library = Path(constants.HF_HUB_CACHE), Path(constants.HF_ASSETS_CACHE) / "gpt2cli"
assert ours == library, (ours, library)
assert ours == (folders.hub_cache(), folders.assets())
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HOME": "/elsewhere"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "~/own", "XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "$WHERE/own", "WHERE": "/somewhere"},
        {"HUGGINGFACE_HUB_CACHE": "/old/hub", "HUGGINGFACE_ASSETS_CACHE": "/old/assets"},
        {
            "HF_HUB_CACHE": "~/hub",
            "HF_ASSETS_CACHE": "$WHERE/assets",
            "WHERE": "/somewhere",
            "HUGGINGFACE_HUB_CACHE": "/old/hub",
            "HF_HOME": "/home",
        },
        {"HF_HUB_CACHE": "relative/hub"},
    ],
    ids=str,
)
def test_the_environment_means_what_it_means_to_the_library(environment: dict[str, str]) -> None:
    names = ("HF_", "HUGGINGFACE_", "XDG_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    env = {**clean, **environment}
    done = subprocess.run(
        [sys.executable, "-c", BOTH], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_library_that_is_loaded_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/its/hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", "/its/assets")
    assert (folders.hub_cache(), folders.assets()) == (
        Path("/its/hub"),
        Path("/its/assets/gpt2cli"),
    )
