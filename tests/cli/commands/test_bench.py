"""`gpt2 bench` as a shell sees it: numbers for people and programs, errors, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import BARD_SIZE, Run, needs_engine

from gpt2cli.analysis import bench
from gpt2cli.decoders import native
from gpt2cli.system import bandwidth
from gpt2cli.threads import thread_count
from gpt2cli.weights import checkpoint

BENCH = ("bench", "-m", "bard", "--device", "cpu", "--repeats", "2", "--tokens", "3")


@pytest.fixture(autouse=True)
def little_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much of it is read is not asked here, but in processes of their own, and takes time."""
    monkeypatch.setattr(bandwidth, "CPU_BUFFER", 8 << 20)
    monkeypatch.setattr(bandwidth.machine, "cache_size", lambda: 1 << 20)


def test_a_table_for_people(run_process: Run) -> None:
    done = run_process(*BENCH, "--context", "5", "--context", "100", "--threads", "1")
    assert done.stderr == b""
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("bard on cpu (")
    assert lines[0].endswith(", 1 thread")
    rows = [line.split() for line in lines[4:6]]
    assert [row[0] for row in rows] == ["5", "100"]
    assert [len(row) for row in rows] == [5, 5]
    assert "GB/s" in done.stdout.decode()
    assert b"\x1b" not in done.stdout


def test_an_object_for_programs(run_main: Run) -> None:
    done = run_main(*BENCH, "--json", "-s", "2")
    assert done.stderr == b""
    data = json.loads(done.stdout)
    assert (data["model"], data["device"], data["precision"]) == ("bard", "cpu", "fp32")
    assert data["weights"] == "real"
    assert data["load_s"] > 0
    assert data["engine"] == ("native" if native.available() else "NumPy")
    assert (data["samples"], data["tokens"], data["repeats"]) == (2, 3, 2)
    assert (data["interrupted"], data["sequences"]) == (False, [])
    assert data["threads"] == thread_count()
    assert [entry["context"] for entry in data["contexts"]] == [
        32,
        BARD_SIZE.context_length // 2,
        BARD_SIZE.context_length * 7 // 8,
    ]
    for entry in data["contexts"]:
        limit = 2 * data["bandwidth_bytes_per_second"] / entry["bytes_per_step"]
        assert entry["limit_tokens_per_second"] == pytest.approx(limit)
        speed = entry["decode_tokens_per_second"]
        assert 0 < speed["lowest"] <= speed["median"] <= speed["highest"]
        share, cache = entry["share_of_limit"], data["cache_bytes"] or 0
        assert (share is None) == (entry["bytes_per_step"] <= cache)
        if share is not None:
            assert share == pytest.approx(speed["median"] / limit)
            assert share <= 1
    first = data["contexts"][0]["prefill_tokens_per_second"]
    assert data["time_to_first_token_s"]["lowest"] == pytest.approx(32 / first["highest"])


def test_sequences_and_a_prompt_that_comes_in(run_main: Run) -> None:
    many = ("--context", "100", "--sequences", "5", "--sequences", "1")
    data = json.loads(run_main(*BENCH, *many, "--json").stdout)
    assert [entry["sequences"] for entry in data["sequences"]] == [1, 5]
    for entry in data["sequences"]:
        assert entry["prompt"] == 100
        # 100 tokens take two steps where others write, each of which all wait for.
        for end in ("lowest", "highest"):
            assert 0 < entry["longest_gap_s"][end] < entry["time_to_first_token_s"][end]
    one, five = data["sequences"]
    assert one["bytes_per_step"] < five["bytes_per_step"]
    lines = run_main(*BENCH, *many).stdout.decode().splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("sequences"))
    rows = [line.split() for line in lines[heading + 1 : heading + 3]]
    assert [row[0] for row in rows] == ["1", "5"]
    assert [len(row) for row in rows] == [7, 7]
    assert any(line.startswith("While a prompt of 100 comes in") for line in lines)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_speed_as_a_picture(run_main: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"speed.{kind}"
    done = run_main(*BENCH, "--context", "5", "--sequences", "2", "--plot", str(path))
    assert done.stderr == b""
    assert b"sequences" in done.stdout
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG" if kind == "png" else b"<?xml")


def test_a_model_without_a_vocabulary_can_be_measured(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (tiny_directory / "config.json", *checkpoint.weight_files(tiny_directory)):
        (bare / path.name).write_bytes(path.read_bytes())
    few = ("--repeats", "1", "--sequences", "2")
    data = json.loads(run_main("bench", "-m", str(bare), *few, "--json").stdout)
    assert [entry["context"] for entry in data["contexts"]] == [16, 24]
    assert [entry["sequences"] for entry in data["sequences"]] == [2]


@needs_engine
def test_fewer_bits_are_fewer_bytes(run_main: Run) -> None:
    sizes = []
    for more in ([], ["--precision", "int8"], ["--precision", "int4"]):
        data = json.loads(run_main(*BENCH, "--context", "9", "--json", *more).stdout)
        sizes.append(data["contexts"][0]["bytes_per_step"])
    assert sizes == sorted(sizes, reverse=True)


TINY = "vocab_size: 512\ncontext_length: 64\nemb_dim: 64\nn_heads: 4\nn_layers: 2\n"


@pytest.mark.parametrize("repo_id", ["", "repo_id: owner/name\n"])
@pytest.mark.parametrize("quantize", [[], ["--precision", "int8"]])
def test_what_is_not_in_the_cache_is_measured_with_random_weights(
    run_main: Run, tmp_path: Path, repo_id: str, quantize: list[str]
) -> None:
    if quantize and not native.available():
        pytest.skip(native.why_not())
    config = tmp_path / "mine.yaml"
    config.write_text(TINY + repo_id)
    arguments = ("bench", "-m", str(config), "--device", "cpu", "--repeats", "1", *quantize)
    done = run_main(*arguments, "--json")
    why = "it is not in the cache" if repo_id else "its config names none"
    notice = done.stderr.decode()
    assert notice.startswith(f"gpt2: mine is measured with random weights, for {why}")
    assert ("gpt2 models pull owner/name" in notice) == bool(repo_id)
    assert notice.count("\n") == 1
    data = json.loads(done.stdout)
    assert (data["model"], data["weights"], data["load_s"]) == ("mine", "random", None)
    assert [entry["context"] for entry in data["contexts"]] == [32, 48]
    assert not list(tmp_path.rglob("*.safetensors"))  # neither weights nor codes are kept
    table = run_main(*arguments).stdout.decode()
    assert table.startswith("mine with random weights on cpu (")


def test_a_model_too_large_for_memory_is_refused_before_its_weights_are_made(
    run_main: Run,
) -> None:
    done = run_main("bench", "-m", "gpt3-175B", "--device", "cpu", code=2)
    assert done.stdout == b""
    message = done.stderr.decode()
    assert message.startswith("gpt2: gpt3-175B with 1 sample of up to 1842 tokens needs 71")
    assert message.endswith("GB are free; choose a smaller model\n")


@pytest.mark.parametrize("cache", [1 << 40, 0, None])
def test_a_share_is_left_out_where_the_cache_holds_the_model(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, cache: int | None
) -> None:
    monkeypatch.setattr(bench, "cache_size", lambda device: cache)
    monkeypatch.setattr(bandwidth, "best", lambda read, size: 1e15)
    arguments = (*BENCH, "--context", "5")
    data = json.loads(run_main(*arguments, "--json").stdout)
    assert data["cache_bytes"] == cache
    assert (data["contexts"][0]["share_of_limit"] is None) == bool(cache)
    lines = run_main(*arguments).stdout.decode().splitlines()
    assert lines[4].split()[-1] == "-" if cache else lines[4].endswith("%")
    footnote = (
        "-: what a step reads fits the cache of 1,099,512 MB, so that memory is not the limit"
    )
    assert lines[-1].startswith(footnote) == bool(cache)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "bard", "--context", "0"], "context must be at least 1, not 0"),
        (
            ["-m", "bard", "--context", str(BARD_SIZE.context_length - 6)],
            f"give at most --context {BARD_SIZE.context_length - 50}",
        ),
        (["--context", "1024"], "exceed the model's 1024"),
        (["--tokens", "0"], "tokens must be at least 1"),
        (["-m", "some/repository", "--repeats", "0"], "repeats must be at least 1"),
        (["-m", "some/repository", "-s", "0"], "samples must be at least 1"),
        (["--tokens", "1024"], "leave no room"),
        (["-m", "some/repository", "--sequences", "0"], "sequences must be at least 1"),
        (["--sequences", "1000"], "give fewer sequences or tokens"),
        (["--plot", "speed.gif"], "--plot must end in .png or .svg, not speed.gif"),
        (["--plot", "no/such/speed.png"], "no/such"),
        (["--precision", "int2"], "--precision must be auto, fp32"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["-m", "124m-"], "unknown model '124m-'; did you mean '124M'?"),
    ],
)
def test_wrong_use_is_one_sentence_before_anything_is_fetched(
    run_main: Run, arguments: list[str], message: str
) -> None:
    done = run_main("bench", "--offline", *arguments, code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_progress_on_a_terminal_goes_away_and_ctrl_c_shows_what_was_measured() -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "gpt2cli", *BENCH, "--context", "9", "--repeats", "100000"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown, drawn = b"", 0
    try:
        while drawn < 5:  # after each round: one that does not count, and at least one that does
            shown += os.read(controller, 4096)
            drawn = shown.count(b"measuring")
        process.send_signal(signal.SIGINT)
        # A terminal that nobody reads fills up, and then the command cannot leave.
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            try:
                shown += os.read(controller, 4096)
            except OSError:  # Linux: the other end is closed
                break
        assert process.wait(60) == 130
    finally:
        process.kill()
        os.close(controller)
    assert process.stdout is not None
    data = json.loads(process.stdout.read())
    assert data["interrupted"]
    assert 0 < data["repeats"] < 100_000
    assert [entry["context"] for entry in data["contexts"]] == [9]
    assert b"Traceback" not in shown
