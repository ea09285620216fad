"""`gpt2 train` as a shell sees it: train, stop, resume, use."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TEXT, Run, error_of, on_terminal

from gpt2cli.training import run

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
    run_main: Run, arguments: list[str], tmp_path: Path
) -> None:
    done = run_main(*arguments, "--json")
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1]["bits_per_byte"] > 0
    run_main("generate", "ROMEO", "-m", str(tmp_path / "model"), "-n", "5")
    again = run_main(*arguments, code=2)
    assert b"already holds a model" in again.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_resume_needs_only_the_directory(
    run_main: Run, arguments: list[str], tmp_path: Path, number: int, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *arguments, "--steps", "100000", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"--resume" in errors
    assert b"Traceback" not in errors
    last = json.loads(rest.splitlines()[-1])["step"] if rest else 1
    resume = ["train", "--out", str(tmp_path / "model"), "--resume"]
    more = run_main(*resume, "--steps", str(last + 2), "--json")
    assert [json.loads(line)["step"] for line in more.stdout.splitlines()] == [last + 1, last + 2]


def test_resume_knows_what_the_run_was(run_main: Run, arguments: list[str], tmp_path: Path) -> None:
    run_main(*arguments, "--learning-rate", "0.01", "--precision", "bf16")
    resume = ["train", "--out", str(tmp_path / "model"), "--resume"]
    done = run_main(*resume)
    assert b"model has had its 6 steps; more --steps continue it" in done.stderr
    more = run_main(*resume, "--steps", "9")
    assert more.stderr.count(b"bits/byte") == 1
    changed = run_main(*resume, "--steps", "12", "--learning-rate", "0.5", code=2)
    assert "--learning-rate was 0.01 when this run began" in error_of(changed)
    fewer = run_main(*resume, "--steps", "5", code=2)
    assert "--steps must be at least the 9 that are done" in error_of(fewer)


def test_the_text_of_a_run_may_move_but_not_change(
    run_main: Run, arguments: list[str], tmp_path: Path
) -> None:
    run_main(*arguments)
    (tmp_path / "text").rename(tmp_path / "moved")
    resume = ["train", "--out", str(tmp_path / "model"), "--resume", "--steps", "7"]
    gone = run_main(*resume, code=2)
    assert "text, is gone; --data FILE tells where it is now" in error_of(gone)
    (tmp_path / "other").write_text(TEXT + "x")
    other = run_main(*resume, "--data", str(tmp_path / "other"), code=2)
    assert "the text is not the one that the run" in error_of(other)
    run_main(*resume, "--data", str(tmp_path / "moved"))


def test_divergence_is_a_failure_in_one_sentence(
    run_main: Run, arguments: list[str], tmp_path: Path
) -> None:
    done = run_main(*arguments, "--learning-rate", "1e9", "--json", code=1)
    assert "nothing was saved; try a lower --learning-rate" in error_of(done)
    assert b"NaN" not in done.stdout
    assert not (tmp_path / "model" / "vocab.json").exists()


def test_a_file_has_a_line_for_each_validation_and_one_at_the_end(
    run_main: Run, arguments: list[str]
) -> None:
    first, second, end = run_main(*arguments).stderr.decode().splitlines()
    for step, line in ((3, first), (6, second)):
        assert line.startswith(f"gpt2: step {step}: loss ")
        assert line.endswith(" bits/byte, saved")
    assert end.startswith("gpt2: done; try: gpt2 generate --model ")


def test_quiet_says_nothing(run_main: Run, arguments: list[str]) -> None:
    done = run_main(*arguments, "--quiet")
    assert (done.stdout, done.stderr) == (b"", b"")


def test_verbose_tells_what_is_trained_and_how_long(run_main: Run, arguments: list[str]) -> None:
    lines = run_main(*arguments, "-v").stderr.decode().splitlines()
    assert "parameters" in lines[0]
    assert "on cpu in fp32" in lines[0]
    assert "6 steps in" in lines[-2]


def test_the_status_line_fits_its_terminal(arguments: list[str]) -> None:
    code, screen = on_terminal(*arguments, env={"COLUMNS": "40", "TERM": "xterm"})
    assert code == 0
    assert "6/6 loss " in screen
    assert "…" not in screen


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (["--config", "nothing"], 2, "there is no config 'nothing'"),
        (["--data", "/nowhere"], 2, "there is no file '/nowhere'"),
        (["--steps", "0"], 2, "steps must be at least 1"),
        (["--precision", "fp16"], 2, "training needs --precision fp32 or bf16"),
        (["--device", "tpu"], 2, "unknown device"),
        (["--resume"], 1, "nothing to resume"),
        (["--batch-size", "1000000000"], 2, "GB are free; choose a smaller batch"),
        (["--data", "/dev/null"], 2, "cannot read /dev/null: it is no regular file"),
        (["--out", "/dev/null"], 2, "/dev/null is a file, not a directory"),
        (["--out", "/proc/x1"], 2, "cannot write a model into /proc/x1"),
        (["--shard"], 2, "--shard needs several --devices"),
        (["--devices", "3"], 2, "--batch-size 2 is less than 3 processes"),
        (["--save-precision", "int8"], 2, "--save-precision must be fp32, bf16 or fp16"),
    ],
)
def test_wrong_use_is_one_sentence_before_the_text_is_encoded(
    run_main: Run,
    arguments: list[str],
    extra: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "learn_vocabulary", None)
    done = run_main(*arguments, *extra, code=code)
    assert message in error_of(done)


@pytest.mark.parametrize(
    ("left", "message"), [(2, "needs --data FILE"), (4, "--config NAME to begin from scratch")]
)
def test_a_new_run_needs_config_and_text(
    run_main: Run, arguments: list[str], left: int, message: str
) -> None:
    config, data, out = arguments[1:3], arguments[3:5], arguments[5:7]
    done = run_main("train", *(config if left == 2 else data), *out, code=2)
    assert message in error_of(done)
