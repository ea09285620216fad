"""`gpt2 bulk` as a shell sees it; `bulk_runs.complete` stands in for the model."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from bulk_runs import complete, read_rows, write_rows
from helpers import REPOSITORY, Run, error_of

from gpt2cli import api
from gpt2cli.serving.journal import Journal

BARD = ("-m", "bard", "--seed", "7")


@pytest.fixture(autouse=True)
def completing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.LoadedModel, "complete", complete)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "in.jsonl", [{"prompt": f"row {i}", "id": i} for i in range(9)])


def test_a_file_is_completed_without_a_word(run_main: Run, prompts: Path, tmp_path: Path) -> None:
    done = run_main("bulk", str(prompts), "-o", str(tmp_path / "out.jsonl"), *BARD)
    assert (done.stdout, done.stderr) == (b"", b"")
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(9))
    assert all(row["completion"] and row["finish_reason"] == "length" for row in rows)


def test_verbose_and_json_say_what_was_done(run_main: Run, prompts: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    done = run_main("bulk", str(prompts), "-o", out, *BARD, "-v", "--json")
    assert b"9 rows, 72 tokens in" in done.stderr
    assert b"seed 7" in done.stderr
    found = json.loads(done.stdout)
    assert (found["rows"], found["errors"], found["completion_tokens"]) == (9, 0, 72)
    done = run_main("bulk", str(prompts), "-o", out, *BARD, "--json")
    assert error_of(done) == f"gpt2: nothing to do for {out}: it is finished\n"
    assert json.loads(done.stdout)["new_rows"] == 0


def test_verbose_tells_from_time_to_time(
    run_main: Run, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2cli.cli.commands.bulk.QUIET_SECONDS", 0.0)
    done = run_main("bulk", str(prompts), "-o", str(tmp_path / "out.jsonl"), *BARD, "-v")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("gpt2: at most 64 texts at once, ")
    assert lines[5].startswith("gpt2: 5 rows, ")
    assert len(lines) == 11  # and the summary


def test_settings_of_all_rows_and_of_one(run_main: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "max_tokens": 2}, {"prompt": "a", "samples": 1}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    run_main("bulk", str(source), "-o", str(out), *BARD, "-n", "3", "-s", "2", "-t", "0")
    assert [row["completion_tokens"] for row in read_rows(out)] == [[3, 3], [2, 2], 3]


def test_what_the_model_is_asked(run_main: Run, prompts: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def remember(self: api.LoadedModel, rows: Any, **settings: Any) -> Any:
        asked.update(settings)
        return complete(self, rows, **settings)

    with patch.object(api.LoadedModel, "complete", remember):
        options = ["--stop", "x", "--top-k", "5", "--bias", "#5=-inf", "--overflow", "error"]
        options += [
            "--batch-tokens",
            "64",
            "--max-sequences",
            "8",
            "--unordered",
            "--logprobs",
            "1",
        ]
        options += ["--ignore-eos", "--min-tokens", "1", "--repetition-penalty", "1.1"]
        run_main("bulk", str(prompts), "-o", str(tmp_path / "out.jsonl"), *BARD, *options)
    assert asked == {
        "ordered": False,
        "batch_tokens": 64,
        "max_sequences": 8,
        "stop": ("x",),
        "top_k": 5,
        "bias": {5: float("-inf")},
        "overflow": "error",
        "logprobs": 1,
        "ignore_eos": True,
        "min_tokens": 1,
        "repetition_penalty": 1.1,
    }
    assert {row["row"] for row in read_rows(tmp_path / "out.jsonl")} == set(range(9))


def test_lines_go_through_a_pipe(run_main: Run, tmp_path: Path) -> None:
    done = run_main("bulk", "-", "--lines", "-o", "-", *BARD, stdin=b"one\n\nthree\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "", "three"]
    file = tmp_path / "in.txt.gz"
    file.write_bytes(gzip.compress(b"one\n\nthree\n"))
    assert run_main("bulk", str(file), "--lines", "-o", "-", *BARD).stdout == done.stdout


def test_tables_in_and_out(run_main: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('title,body\nA,one\nB,"two, or\nthree"\n')
    options = ("--prompt-template", "{title}: {body}", *BARD)
    run_main("bulk", str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.parquet"), *options)
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert table["body"].tolist() == ["one", "two, or\nthree"]
    assert table["completion"].str.len().tolist() == [8, 8]
    options = ("--field", "body", *BARD)
    done = run_main("bulk", str(tmp_path / "out.parquet"), "-o", "-", *options)
    assert [json.loads(row)["title"] for row in done.stdout.splitlines()] == ["A", "B"]


def test_bad_rows_are_counted_and_can_be_retried(run_main: Run, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "a"}, "{", {"prompt": 5}])
    out = tmp_path / "out.jsonl"
    command = ("bulk", str(source), "-o", str(out), *BARD)
    message = (
        'gpt2: 2 of 3 rows failed, as their "error" says; --retry-errors completes them again\n'
    )
    assert error_of(run_main(*command, code=1)) == message
    assert [row.get("error", "")[:7] for row in read_rows(out)] == ["", "line 2:", "line 3:"]
    assert message in run_main(*command, code=1).stderr.decode()
    write_rows(source, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}])
    assert run_main(*command, "--retry-errors").stderr == b""
    assert [row["prompt"] for row in read_rows(out)] == ["a", "b", "c"]
    assert b"no row failed" in run_main(*command, "--retry-errors").stderr
    done = run_main("bulk", "-", "-o", "-", *BARD, stdin=b"{\n", code=1)
    assert error_of(done) == 'gpt2: 1 of 1 rows failed, as their "error" says\n'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["none.jsonl"], "there is no file 'none.jsonl'"),
        (["in.jsonl", "-o", "in.jsonl"], "it is read, too"),
        (["in.jsonl", "-o", "none/out"], "is no directory"),
        (["in.jsonl", "--field", "txt"], "has no field 'txt'; it has prompt, id"),
        (["in.jsonl", "--prompt-template", "{promt}"], "'promt'; did you mean 'prompt'?"),
        (["in.jsonl", "--prompt-template", "x"], "the template names no field"),
        (["in.jsonl", "--field", "id", "--lines"], "--lines and --field cannot go together"),
        (["in.jsonl", "--shard", "3/2"], "--shard must be i/n"),
        (["in.jsonl", "--format", "csv"], "--format must be jsonl, openai or parquet"),
        (["in.jsonl", "-n", "0"], "--max-tokens must be at least 1"),
        (["in.jsonl", "--top-p", "2"], "--top-p must be above 0"),
        (["in.jsonl", "--overflow", "x"], "--overflow must be slide or error"),
        (["in.jsonl", "-o", "-", "--json"], "--json needs an output that is a file"),
        (["in.jsonl", "-o", "-", "--retry-errors"], "--retry-errors needs an output"),
        (["in.jsonl", "--overwrite", "--retry-errors"], "cannot go together"),
        (["in.jsonl", "--retry-errors"], "no finished run"),
        (["in.jsonl", "-m", "brad"], "did you mean 'bard'"),
        (["in.jsonl", "--batch-tokens", "0"], "--batch-tokens must be at least 1"),
    ],
)
def test_wrong_usage_is_one_sentence_and_writes_nothing(
    run_main: Run,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "-m" in options else list(BARD)
    output = [] if "-o" in options else ["-o", "out.jsonl"]
    assert message in error_of(run_main("bulk", *options, *output, *model, code=2))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_run_with_other_settings_is_refused_by_their_options(
    run_main: Run, prompts: Path, tmp_path: Path
) -> None:
    command = ("bulk", str(prompts), "-o", str(tmp_path / "out.jsonl"), *BARD)
    run_main(*command)
    error = error_of(run_main(*command, "--top-k", "5", "--precision", "int8", code=2))
    assert "--top-k was not given and is now 5" in error
    assert "--precision was fp32 and is now int8" in error
    assert "--overwrite" in error
    run_main(*command, "--top-k", "5", "--overwrite")


def test_stdin_cannot_continue_a_run(run_main: Run, tmp_path: Path) -> None:
    command = ("bulk", "-", "--lines", "-o", str(tmp_path / "out.jsonl"), *BARD)
    run_main(*command, stdin=b"a\n")
    error = error_of(run_main(*command, stdin=b"a\nb\n", code=2))
    assert "stdin cannot be read again" in error
    run_main(*command, "--overwrite", stdin=b"a\nb\n")
    assert len(read_rows(tmp_path / "out.jsonl")) == 2


def test_a_full_disk_says_how_to_continue(run_main: Run, prompts: Path, tmp_path: Path) -> None:
    out, write = tmp_path / "out.jsonl", os.write

    def until_full(file: int, data: Any) -> int:
        if len(out.read_bytes().splitlines()) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    command = ("bulk", str(prompts), "-o", str(out), *BARD)
    with patch.object(os, "write", until_full):
        error = error_of(run_main(*command, code=1))
    assert "No space left on device" in error
    assert "keeps 3 rows, and the same command continues after them" in error
    run_main(*command)
    assert [row["id"] for row in read_rows(out)] == list(range(9))


def test_an_interruption_says_how_to_continue(run_main: Run, prompts: Path, tmp_path: Path) -> None:
    out, append = tmp_path / "out.jsonl", Journal.write

    def interrupted(self: Journal, line: bytes) -> None:
        if len(out.read_bytes().splitlines()) == 3:
            raise KeyboardInterrupt
        append(self, line)

    command = ("bulk", str(prompts), "-o", str(out), *BARD)
    with patch.object(Journal, "write", interrupted):
        error = error_of(run_main(*command, "--overwrite", code=130))
    assert "keeps 3 rows, and the same command without --overwrite continues" in error
    run_main(*command)
    assert [row["id"] for row in read_rows(out)] == list(range(9))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_and_keeps_what_is_written(
    prompts: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bulk_runs", "bulk", str(prompts), "-o", str(out), *BARD]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY / 'tests'}{os.pathsep}{REPOSITORY}",
        "COMPLETION_SECONDS": "1",
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"stopped" in told
    assert b"the same command continues" in told
    assert [row["id"] for row in read_rows(out)] == list(range(4))


def test_openai_lines_give_openai_lines(run_main: Run, tmp_path: Path) -> None:
    body = {"prompt": "Say", "max_tokens": 4}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": body}
    source = write_rows(tmp_path / "in.jsonl", [line])
    run_main("bulk", str(source), "-o", str(tmp_path / "out.jsonl"), *BARD)
    [row] = read_rows(tmp_path / "out.jsonl")
    assert row["custom_id"] == "x"
    assert row["response"]["body"]["usage"]["completion_tokens"] == 4
