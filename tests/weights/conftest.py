"""Fixtures: a hub with one repository, and an empty home to download it to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import CLUTTER, FILES, REPO, Machine
from hub_server import HubServer


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        running.add_repo(REPO, FILES | CLUTTER)
        yield running


@pytest.fixture
def machine(server: HubServer, tmp_path: Path) -> Machine:
    return Machine(tmp_path, server.url)


@pytest.fixture
def directory(tiny_directory: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_directory, tmp_path / "model"))
