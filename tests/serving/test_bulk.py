"""Bulk runs: nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from bulk_runs import job_of, read_rows, run, write_rows
from helpers import REPOSITORY, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.serving import results
from gpt2cli.serving.job import Shard

ROWS: list[Any] = [
    {"prompt": f"row {i} é", "id": i} | ({"max_tokens": i % 5} if i % 3 else {}) for i in range(23)
]
ROWS[4], ROWS[9], ROWS[15] = "{torn", {"no prompt": 1}, {"prompt": "own", "seed": 5, "samples": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an input, and what a run makes of it that is never stopped."""
    directory = tmp_path_factory.mktemp("whole")
    run(write_rows(directory / "in.jsonl", ROWS), directory / "out.jsonl")
    return directory


def lines_of(path: Path) -> Counter[bytes]:
    return Counter(path.read_bytes().splitlines(keepends=True))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.floats(0, 1), min_size=1, max_size=3), ordered=st.booleans())
def test_cut_off_at_any_byte_a_run_ends_as_if_never_stopped(
    whole: Path, tmp_path: Path, cuts: list[float], ordered: bool
) -> None:
    source, output = whole / "in.jsonl", tmp_path / "out.jsonl"
    run(source, output, ordered=ordered, overwrite=True)
    expected = output.read_bytes()
    (tmp_path / "out.jsonl.run.json").unlink()
    output.unlink()
    run(source, output, ordered=ordered, stop_after=1 + int(cuts[0] * 21))
    for cut in cuts:
        os.truncate(output, int(output.stat().st_size * cut))
        run(source, output, ordered=ordered, stop_after=6)
    run(source, output, ordered=ordered)
    if ordered:
        assert output.read_bytes() == expected == (whole / "out.jsonl").read_bytes()
    else:
        assert Counter(expected.splitlines(keepends=True)) == lines_of(output)


@pytest.mark.parametrize("ordered", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_a_run_that_continues(
    whole: Path, tmp_path: Path, ordered: bool
) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "bulk_runs", "bulk", str(whole / "in.jsonl")]
    command += ["-o", str(output), "-m", "bard", "--seed", "7"] + ["--unordered"] * (not ordered)
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY / 'tests'}{os.pathsep}{REPOSITORY}",
        "COMPLETION_SECONDS": "0.3",
    }
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        before = output.stat().st_size if output.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if output.exists() and output.stat().st_size > before and kills < 2:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        assert process.stderr is not None
        process.stderr.read()
        if process.wait() == 1:
            break
    assert kills == 2
    if ordered:
        assert output.read_bytes() == (whole / "out.jsonl").read_bytes()
    else:
        found = [json.loads(line) for line in output.read_text().splitlines()]
        assert sorted(row.pop("row") for row in found) == list(range(len(ROWS)))
        assert Counter(map(json.dumps, found)) == Counter(
            map(json.dumps, read_rows(whole / "out.jsonl"))
        )


def test_a_finished_run_does_nothing(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(whole / "in.jsonl", output)
    before = output.stat()
    progress = run(whole / "in.jsonl", output, seed=None)
    assert progress.is_finished
    assert (progress.rows, progress.errors, progress.new_rows) == (23, 5, 0)
    assert output.stat() == before


def test_nothing_is_completed_twice(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert run(whole / "in.jsonl", output, stop_after=9).new_rows == 9
    progress = run(whole / "in.jsonl", output)
    assert (progress.rows, progress.new_rows) == (23, 14)
    assert progress.errors == sum(results.has_failed(row) for row in read_rows(output))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, r"seed was 7 and is now 8"),
        ({"settings": {"temperature": 0.5}}, r"temperature was not given and is now 0.5"),
        ({"settings": {"bias": {5: 1.0}}}, r"bias was not given and is now \{'5': '1.0'\}"),
        ({"shard": Shard(1, 2)}, r"shard was 1/1 and is now 1/2"),
        ({"ordered": False}, r"unordered was False and is now True"),
        ({"field": "id"}, r"field was prompt and is now id"),
        ({"format": "openai"}, r"format was jsonl and is now openai"),
        ({"lines": True}, r"lines was False and is now True"),
    ],
)
def test_another_run_is_refused_by_what_differs(
    whole: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    output = tmp_path / "out.jsonl"
    run(whole / "in.jsonl", output, stop_after=5)
    before = output.read_bytes()
    with pytest.raises(UsageError, match=named):
        run(whole / "in.jsonl", output, **change)
    assert output.read_bytes() == before
    assert run(whole / "in.jsonl", output, overwrite=True, **change).is_finished is False


def test_another_input_is_refused(whole: Path, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    run(source, tmp_path / "out.jsonl", stop_after=5)
    write_rows(source, [*ROWS, {"prompt": "more"}])
    with pytest.raises(UsageError, match=r"input was .* and is now"):
        run(source, tmp_path / "out.jsonl")


def test_a_file_of_someone_else_is_not_touched(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    with pytest.raises(UsageError, match="was not begun by gpt2 bulk"):
        run(whole / "in.jsonl", output)
    assert output.read_text() == "precious\n"
    run(whole / "in.jsonl", output, overwrite=True)
    assert output.read_bytes() == (whole / "out.jsonl").read_bytes()


def test_an_output_that_was_deleted_is_made_anew_by_any_run(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run(whole / "in.jsonl", output, seed=8)
    output.unlink()
    run(whole / "in.jsonl", output)
    assert output.read_bytes() == (whole / "out.jsonl").read_bytes()


def test_a_drawn_seed_is_kept_when_the_run_continues(whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = run(whole / "in.jsonl", output, seed=None, stop_after=5)
    second = run(whole / "in.jsonl", output, seed=None)
    assert first.seed == second.seed is not None
    again = tmp_path / "again.jsonl"
    run(whole / "in.jsonl", again, seed=first.seed)
    assert again.read_bytes() == output.read_bytes()


@pytest.mark.parametrize("parts", [1, 2, 5, 40])
def test_shards_joined_are_the_whole(whole: Path, tmp_path: Path, parts: int) -> None:
    rows: dict[int, bytes] = {}
    for part in range(1, parts + 1):
        output = tmp_path / f"{part}.jsonl"
        run(whole / "in.jsonl", output, shard=Shard(part, parts), stop_after=2)
        run(whole / "in.jsonl", output, shard=Shard(part, parts))
        lines = output.read_bytes().splitlines(keepends=True)
        rows |= {i * parts + part - 1: line for i, line in enumerate(lines)}
    joined = b"".join(rows[i] for i in sorted(rows))
    assert joined == (whole / "out.jsonl").read_bytes()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "-1/2", "1/0"])
def test_a_shard_is_one_of_n(text: str) -> None:
    with pytest.raises(UsageError, match="shard must be i/n"):
        Shard.parse(text)


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.gz"])
def test_a_file_that_nothing_can_be_appended_to_appears_at_the_end(
    whole: Path, tmp_path: Path, name: str
) -> None:
    output, part = tmp_path / name, tmp_path / f"{name}.part.jsonl"
    run(whole / "in.jsonl", output, stop_after=9)
    os.truncate(part, part.stat().st_size - 3)
    assert not output.exists()
    run(whole / "in.jsonl", output)
    assert part.read_bytes() == (whole / "out.jsonl").read_bytes()  # kept, for some rows failed
    if name.endswith("parquet"):
        table = pq.read_table(output).to_pylist()
        assert [row["id"] for row in table] == [
            row.get("id") for row in read_rows(whole / "out.jsonl")
        ]
    before = output.stat()
    assert run(whole / "in.jsonl", output).is_finished
    assert output.stat() == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_that_failed_are_completed_again_in_their_places(
    tmp_path: Path, name: str, ordered: bool
) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / name
    lines = tmp_path / ("out.jsonl" if name == "out.jsonl" else f"{name}.part.jsonl")
    run(source, output, ordered=ordered)
    before = read_rows(lines)
    mended = [
        row | {"max_tokens": 3} if isinstance(row, dict) and "id" in row else {"prompt": "mended"}
        for row in ROWS
    ]
    mended[9] = ROWS[9]  # fails again
    write_rows(source, mended)
    progress = run(source, output, ordered=ordered, retry_errors=True)
    assert (progress.rows, progress.errors, progress.new_rows) == (23, 1, 5)
    after = read_rows(lines)
    for old, new in zip(before, after, strict=True):
        if not results.has_failed(old):
            assert new == old
        else:
            assert results.has_failed(new) == ("no prompt" in new)
            assert new.get("row") == old.get("row")
    assert run(source, output, ordered=ordered).is_finished
    assert not (tmp_path / f"{name}.retry.jsonl").exists()


def test_a_retry_that_is_stopped_continues(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(source, output)
    before = output.read_bytes()
    write_rows(source, [{"prompt": f"mended {i}"} for i in range(len(ROWS))])
    assert run(source, output, retry_errors=True, stop_after=3).new_rows == 3
    assert output.read_bytes() == before
    with (tmp_path / "out.jsonl.retry.jsonl").open("ab") as stream:
        stream.write(b'{"torn')
    assert run(source, output, retry_errors=True).new_rows == 2
    after = read_rows(output)
    assert not any(map(results.has_failed, after))
    assert after[1]["prompt"] == ROWS[1]["prompt"]
    assert after[4]["prompt"] == "mended 4"
    assert run(source, output, retry_errors=True).is_finished


def test_a_retry_of_other_rows_leaves_the_output(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match="no finished run"):
        run(source, output, retry_errors=True)
    run(source, output)
    before = output.read_bytes()
    write_rows(source, ROWS[1:])
    with pytest.raises(GPT2CLIError, match="the input has 22 rows and the output 23"):
        run(source, output, retry_errors=True)
    with pytest.raises(UsageError, match="shard was 1/1"):
        run(source, output, retry_errors=True, shard=Shard(1, 2))
    assert output.read_bytes() == before


def test_a_row_is_what_generate_gives_for_its_seed(run_process: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "ROMEO:"}, {"prompt": "To be, or", "temperature": 0.5, "max_tokens": 9}]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    run_process("bulk", str(source), "-o", str(output), "-m", "bard", "-n", "12", "--seed", "3")
    for row in read_rows(output):
        options = ["-m", "bard", "-n", str(row.get("max_tokens", 12)), "--seed", str(row["seed"])]
        options += ["-t", str(row["temperature"])] if "temperature" in row else []
        assert run_process("generate", row["prompt"], *options).stdout.decode() == row["completion"]


@pytest.mark.slow
def test_a_model_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """What continues stands among other rows than before, and is what it would have been."""
    rows = [{"prompt": f"{i} and", "max_tokens": 5 + i % 40} for i in range(150)]
    source = write_rows(tmp_path / "in.jsonl", rows)

    def command(output: Path) -> list[str]:
        model = ["-m", "bard", "--device", "cpu", "--seed", "1"]
        bulk = ["bulk", str(source), "-o", str(output), *model]
        return [sys.executable, "-m", "gpt2cli", *bulk]

    killed, once = tmp_path / "killed.jsonl", tmp_path / "once.jsonl"
    for size in (1, 6_000, 12_000):
        process = subprocess.Popen(command(killed))
        while process.poll() is None and not (killed.exists() and killed.stat().st_size >= size):
            time.sleep(0.005)
        process.kill()
        process.wait()
    for output in (killed, once):
        subprocess.run(command(output), check=True)
    assert killed.read_bytes() == once.read_bytes()
    assert len(read_rows(once)) == 150


def test_a_run_of_no_rows_ends(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [])
    progress = run(source, tmp_path / "out.jsonl")
    assert (progress.rows, progress.errors) == (0, 0)
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    assert run(source, tmp_path / "out.jsonl").is_finished


def test_rows_are_read_as_they_are_needed(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ["{"] * 2000)
    _, job, _ = job_of(source, tmp_path / "out.jsonl")
    count = 0
    original = type(job.source).records

    def counted(self: Any) -> Any:
        nonlocal count
        for found in original(self):
            count += 1
            yield found

    with patch.object(type(job.source), "records", counted):
        run(source, tmp_path / "out.jsonl", stop_after=1)
    assert count < 20


MEMORY = """
import sys
from pathlib import Path
from bulk_runs import run
from gpt2cli.system.machine import peak_memory
source, output = sys.argv[1:]
print(run(Path(source), Path(output), ordered=False).rows)
print(peak_memory())
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (1_000, 30_000):
        source = tmp_path / f"{count}.jsonl"
        with source.open("w") as stream:
            for i in range(count):
                row = {"prompt": f"row {i}", "text": "x" * 1000}
                stream.write(json.dumps(row) + "\n" if i % 3 else "{\n")
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(source), str(tmp_path / f"{count}.parquet")],
            env=os.environ | {"PYTHONPATH": f"{REPOSITORY / 'tests'}{os.pathsep}{REPOSITORY}"},
            capture_output=True,
            check=True,
        )
        rows, peak = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20_000_000  # bytes: less than the input has
