"""Every command that the README and docs/ show in a `console` block does what is shown.

Numbers are not compared, since speeds and addresses differ from run to run; words, columns and
generated texts are.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from helpers import REPOSITORY as ROOT
from helpers import SHARED_DATA, needs_engine

SHAKESPEARE = SHARED_DATA / "tinyshakespeare.txt"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = ("bench", "interventions")  # each command of the latter imports torch
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
# A script, and below it what it prints.
PYTHON = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def _steps(page: Path) -> list[tuple[str, str]]:
    """Commands of a page, each with the output that is shown for it."""
    steps: list[tuple[str, str]] = []
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            while command.endswith("\\"):
                more, _, shown = shown.partition("\n")
                command = f"{command}\n{more}"
            steps.append((command, shown))
    return steps


def _comparable(text: str) -> list[str]:
    """Lines without their numbers, the widths that these take, and what the processor changes.

    That is its name, and in `gpt2 bench` a share of the limit that a large cache takes away, and
    whether the memory was read faster by the model than without it.
    """
    text = re.sub(r"^(-: what a step|No reading was as fast) .*", "", text, flags=re.M)
    text = re.sub(r" -(?=  | *$)", " 1%", text, flags=re.M)
    text = re.sub(r"cmpl-[0-9a-f]+", "cmpl-1", text)
    text = re.sub(r"cpu \((?:[^()]|\([^()]*\))*\)", "cpu", text)
    lines = (
        re.sub(r"[-+~<≤≈]?\d[\d.,e-]*( ?[kMGT](?=\W|$))?", "#", line) for line in text.splitlines()
    )
    return [" ".join(line.split()) for line in lines if line.strip()]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for commands; what still runs there in the end, such as a server, is killed."""
    yield tmp_path
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cwd() == str(tmp_path):
                process.kill()


@needs_engine
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in SLOW else ()) for p in PAGES],
    ids=lambda page: page.stem,
)
def test_what_is_shown_is_what_happens(page: Path, place: Path) -> None:
    steps = _steps(page)
    if SHAKESPEARE.is_file():
        (place / SHAKESPEARE.name).symlink_to(SHAKESPEARE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GPT2_", "HF_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "HF_HOME": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "XDG_STATE_HOME": str(place),
    }
    for command, shown in steps:
        if SHAKESPEARE.name in command and not SHAKESPEARE.is_file():
            continue  # the text is not part of this repository
        if command.startswith("cat ") and not (place / command[4:]).exists():
            (place / command[4:]).write_text(shown, encoding="utf-8")  # a file that is shown
        run = subprocess.run(
            ["bash", "-c", command],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        assert _comparable(run.stdout.decode()) == _comparable(shown), command


@needs_engine
@pytest.mark.parametrize(
    ("script", "shown"),
    [found for page in PAGES for found in PYTHON.findall(page.read_text(encoding="utf-8"))],
)
def test_python_prints_what_is_shown(script: str, shown: str) -> None:
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert (_comparable(run.stdout.decode()), run.stderr) == (_comparable(shown), b"")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
