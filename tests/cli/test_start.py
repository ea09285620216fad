"""How the command begins: in a process of its own, without what it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import needs_engine

# Tells how many threads NumPy's BLAS is to make when it is imported, and afterwards.
SCRIPT = """
import os, sys
class Watcher:
    def find_spec(self, name, *_):
        if name == "numpy":
            print("import", os.environ.get("OPENBLAS_NUM_THREADS"), file=sys.stderr)
sys.meta_path.insert(0, Watcher())
from gpt2cli.cli import main
sys.argv = ["gpt2", *sys.argv[1:]]
try:
    main()
finally:
    print("after", os.environ.get("OPENBLAS_NUM_THREADS"), file=sys.stderr)
"""


@needs_engine
@pytest.mark.parametrize("given", [None, "2"])
@pytest.mark.parametrize("command", ["generate", "score"])
def test_the_blas_that_multiplies_nothing_makes_no_threads(
    given: str | None, command: str, tmp_path: Path
) -> None:
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    env |= {"HF_HOME": str(tmp_path)} | ({"OPENBLAS_NUM_THREADS": given} if given else {})
    arguments = {"generate": ["a", "-n", "1", "--seed", "1", "-q"], "score": ["--text", "ROMEO:"]}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            command,
            "-m",
            "bard",
            "--device",
            "cpu",
            *arguments[command],
        ],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == ["import 1", f"after {given}"]
