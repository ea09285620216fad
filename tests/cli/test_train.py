"""`gpt2 train` as a shell sees it: train, stop, resume, use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TEXT, Gpt2

CONFIG = """
{vocab_size: 300, context_length: 16, emb_dim: 24, n_heads: 2, n_layers: 1, qkv_bias: false,
 training: {steps: 6, batch_size: 2, warmup_steps: 1, eval_interval: 3}}
"""


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    (tmp_path / "text").write_text(TEXT)
    names = {"--config": "mine.yaml", "--data": "text", "--out": "model"}
    return ["train", *(part for key, name in names.items() for part in (key, str(tmp_path / name)))]


def test_training_leaves_a_model_that_generates(
    gpt2: Gpt2, arguments: list[str], tmp_path: Path
) -> None:
    done = gpt2(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1]["bits_per_byte"] > 0
    text = gpt2("generate", "ROMEO", "-m", str(tmp_path / "model"), "-n", "5")
    assert text.returncode == 0, text.stderr
    again = gpt2(*arguments)
    assert again.returncode == 2
    assert b"already holds a model" in again.stderr


def test_ctrl_c_saves_and_resume_goes_on(gpt2: Gpt2, arguments: list[str], tmp_path: Path) -> None:
    long = [*arguments, "--steps", "100000", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *long],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"--resume" in errors
    assert b"Traceback" not in errors
    stopped_at = json.loads(rest.splitlines()[-1])["step"]
    (tmp_path / "text").write_text(TEXT + "x")
    changed = gpt2(*long, "--resume")
    assert changed.returncode == 2
    assert b"another config, setting or text" in changed.stderr
    (tmp_path / "text").write_text(TEXT)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *long, "--resume"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["step"] == stopped_at + 1
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config", "nothing"], "there is no config 'nothing'"),
        (["--data", "/nowhere"], "cannot read /nowhere"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--dtype", "float16"], "training needs float32 or bfloat16"),
        (["--device", "tpu"], "unknown device"),
        (["--resume"], "nothing to resume"),
    ],
)
def test_wrong_use_is_one_sentence(
    gpt2: Gpt2, arguments: list[str], extra: list[str], message: str
) -> None:
    done = gpt2(*arguments, *extra)
    assert done.returncode in (1, 2)
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
