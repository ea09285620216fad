"""Downloads in processes of their own, against a hub on 127.0.0.1.

huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = "owner/tiny"
WEIGHTS = random.Random(0).randbytes(2_000_000)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
TEXTS = {
    "config.json": b'{"model_type": "gpt2", "vocab_size": 8, "n_positions": 8, "n_embd": 8, '
    b'"n_head": 2, "n_layer": 1}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
}
FILES = {**TEXTS, "model.safetensors": WEIGHTS}
CLUTTER = {"README.md": b"hello", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"o"}

CHILD = """
import json, sys, time
from gpt2cli.weights import cache, download
from gpt2cli.errors import GPT2CLIError

options = json.loads(sys.argv[1])
if options.pop("impatient"):
    time.sleep = lambda seconds: None
stop_at, calls = options.pop("stop_at"), []

def progress(*call):
    calls.append(call)
    if stop_at is not None and call[0] == "model.safetensors" and call[1] >= stop_at:
        raise KeyboardInterrupt

result = {"error": None, "message": None, "path": None, "progress": calls}
try:
    result["path"] = str(download.download(progress=progress, **options))
except (GPT2CLIError, KeyboardInterrupt) as error:
    result |= {"error": type(error).__name__, "message": str(error)}
cached = cache.cached_snapshot(options["repo_id"])
print(json.dumps(result | {"cached": cached and str(cached)}))
"""


@dataclass(frozen=True)
class Result:
    """What `download` did in another process, and what `cached_snapshot` says after it."""

    error: str | None
    message: str
    path: Path
    progress: list[tuple[str, int, int]]
    cached: Path | None


@dataclass
class Machine:
    """An empty home directory, from which downloads start."""

    home: Path
    endpoint: str
    env: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.home / "hub" / "models--owner--tiny"

    @property
    def partial(self) -> Path:
        return self.folder / "blobs" / f"{SHA256}.incomplete"

    def start(
        self,
        repo_id: str = REPO,
        *,
        impatient: bool = True,
        stop_at: int | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        options |= {"repo_id": repo_id, "impatient": impatient, "stop_at": stop_at}
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), **self.env}
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(options)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def download(self, repo_id: str = REPO, **options: Any) -> Result:
        return finish(self.start(repo_id, **options))


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    assert err == ""  # the library never prints
    result = json.loads(out)
    return Result(
        result["error"],
        result["message"],
        Path(result["path"] or ""),
        [tuple(call) for call in result["progress"]],
        result["cached"] and Path(result["cached"]),
    )
