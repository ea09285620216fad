"""`gpt2 train --from` as a new user meets it: tune, watch, stop, go on, try."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import TEXT, Run, error_of

from gpt2cli.training.state import STATE_FILE

QUICK = ["--batch-size", "4", "--learning-rate", "0.003", "--eval-interval", "2"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    row = {"question": "Who is it?", "answer": "It is the east."}
    path.write_text("".join(json.dumps(row) + "\n" for _ in range(60)))
    return path


@pytest.fixture
def arguments(tiny_directory: Path, rows: Path, tmp_path: Path) -> list[str]:
    """LoRA of the tiny model on prompts and completions under other names."""
    fields = ["--field", "prompt=question", "--field", "completion=answer"]
    model = ["--from", str(tiny_directory), "--out", str(tmp_path / "out")]
    return ["train", *model, "--data", str(rows), *fields, *QUICK]


def test_a_text_and_a_model_are_all_it_takes(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = str(tmp_path / "out")
    done = run_main(
        "train", "--from", str(tiny_directory), "-d", str(tmp_path / "text.txt"), "-o", out
    )
    lines = done.stderr.decode().splitlines()
    assert "parameters, " in lines[0]
    assert " held out, on cpu in fp32" in lines[0]
    assert " GB of memory, " in lines[1]
    assert " epochs; about " in lines[1]
    assert lines[2].startswith("gpt2: step 0: val ")
    assert lines[3] == "gpt2: before"
    assert any(line.startswith("gpt2: validation: ") for line in lines)
    assert "gpt2: after" in lines
    assert lines[-1] == f"gpt2: done; try: gpt2 generate --model {out}"
    run_main(*lines[-1].partition("try: gpt2 ")[2].split(), "Who", "-n", "3")


def test_an_adapter_is_tuned_and_the_command_to_try_it_works(
    run_main: Run, arguments: list[str], tiny_directory: Path, tmp_path: Path
) -> None:
    details = ["--lora", "--lora-rank", "2", "--lora-targets", "c_attn,mlp.c_fc"]
    done = run_main(*arguments, *details, "--plot", str(tmp_path / "loss.svg"))
    lines = done.stderr.decode().splitlines()
    trained = 2 * 2 * ((24 + 72) + (24 + 96))
    assert lines[0].startswith(f"gpt2: {trained:,} of ")
    assert lines[-1].endswith(f"--model {tiny_directory} --adapter {tmp_path / 'out'}")
    run_main(*lines[-1].partition("try: gpt2 ")[2].split(), "Who", "-n", "3")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["attn.c_attn", "mlp.c_fc"]
    assert (config["r"], config["base_model_name_or_path"]) == (2, str(tiny_directory))
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").open()]
    assert [record["step"] for record in records] == list(range(len(records)))
    again = run_main("train", "--run", str(tmp_path / "out" / "run.yaml"), "-o", f"{tmp_path}/two")
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("out", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert b"done; try" in again.stderr


def test_a_log_may_be_csv_and_samples_come_as_often_as_asked(
    run_main: Run, arguments: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    samples = ["--sample-prompt", "Who", "--sample-every", "3"]
    done = run_main(*arguments, "--steps", "7", "--log", str(log), *samples)
    titles = [
        line.removeprefix("gpt2: ")
        for line in done.stderr.decode().splitlines()
        if line in ("gpt2: before", "gpt2: after") or line.endswith((" 3", " 6"))
    ]
    assert titles == ["before", "step 3", "step 6", "after"]
    records = list(csv.DictReader(log.open()))
    assert [record["step"] for record in records] == [str(i) for i in range(8)]
    resume = ["train", "-o", str(tmp_path / "out"), "--resume", "--steps", "9", "--log", str(log)]
    run_main(*resume)
    assert [r["step"] for r in csv.DictReader(log.open())] == [str(i) for i in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--lora"]])
def test_a_run_killed_at_any_moment_goes_on_exactly(
    run_main: Run, arguments: list[str], tmp_path: Path, lora: list[str]
) -> None:
    run_main(*arguments, *lora, "--steps", "30")
    whole = tmp_path / "out"
    whole.rename(tmp_path / "whole")
    command = [sys.executable, "-m", "gpt2cli", *arguments, *lora, "--steps", "30"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (whole / STATE_FILE).exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_main("train", "-o", str(whole), "--resume")
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    logs = [(tmp_path / d / "log.jsonl").read_text().splitlines() for d in ("out", "whole")]
    figures = [[(r["step"], r["loss"]) for r in map(json.loads, log)] for log in logs]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config", "bard"], "--from and --config exclude each other"),
        (["--lora-rank", "4"], "--lora-rank needs --lora"),
        (["--lora", "--lora-targets", "wte"], "which is none of attn.c_attn"),
        (["--lora", "--lora-rank", "0"], "rank must be at least 1"),
        (["--schedule", "linear"], "--schedule must be one of cosine, wsd"),
        (["--optimizer", "sgd"], "--optimizer must be one of adamw, muon"),
        (["--micro-batch", "0"], "--micro-batch must be at least 1"),
        (["--epochs", "0"], "--epochs must be above 0"),
        (["--epochs", "2", "--steps", "9"], "--epochs and --steps exclude each other"),
        (["--dropout", "1"], "must be at least 0 and below 1"),
        (["--plot", "/tmp/loss.gif"], "--plot must end in .png or .svg"),
        (["--log", "/nowhere/log.csv"], "/nowhere is no directory"),
        (["--field", "answr=x"], "field must be NAME"),
        (["--val", "/nowhere"], "there is no file '/nowhere'"),
        (["--micro-batch", "1000000000", "--batch-size", "1000000000"], "GB are free"),
    ],
)
def test_wrong_use_is_one_sentence(
    run_main: Run, arguments: list[str], extra: list[str], message: str, tmp_path: Path
) -> None:
    assert message in error_of(run_main(*arguments, *extra, code=2))
    assert not (tmp_path / "out").exists()


def test_messages_are_refused(run_main: Run, tiny_directory: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    model = ["--from", str(tiny_directory), "--out", str(tmp_path / "out")]
    done = run_main("train", *model, "--data", str(chat), code=2)
    assert "GPT-2 has no chat template" in error_of(done)


def test_an_environment_of_another_directory_changes_nothing(
    run_main: Run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are kept as they are found from anywhere."""
    monkeypatch.chdir(tmp_path)
    arguments[arguments.index("--data") + 1] = "rows.jsonl"
    run_main(*arguments, "--steps", "2")
    monkeypatch.chdir(os.sep)
    run_main("train", "-o", str(tmp_path / "out"), "--resume", "--steps", "3")
