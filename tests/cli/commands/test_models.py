"""`gpt2 models`, and a first `gpt2 generate`, against a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Run
from hub_server import HubServer

REPO = "someone/tiny"


@pytest.fixture
def files(tiny_directory: Path) -> dict[str, bytes]:
    names = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
    needed = {name: (tiny_directory / name).read_bytes() for name in names}
    return {**needed, "README.md": b"hi", "pytorch_model.bin": b"pickle"}


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[HubServer]:
    with HubServer() as running:
        running.add_repo(REPO, files)
        yield running


def test_the_first_run_fetches_and_the_second_needs_no_hub(
    run_process: Run, server: HubServer
) -> None:
    arguments = ("generate", "ROMEO:", "-m", REPO, "-n", "5", "--seed", "1", "--json")
    first = run_process(*arguments, env={"HF_ENDPOINT": server.url})
    assert first.stderr == b""  # no progress where nobody looks
    assert sorted(set(server.fetched())) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "vocab.json",
    ]
    asked = len(server.requests)
    second = run_process(*arguments, env={"HF_ENDPOINT": server.url})
    assert len(server.requests) == asked
    records = [json.loads(done.stdout) for done in (first, second)]
    assert records[0]["text"] == records[1]["text"]
    assert len(records[0]["revision"]) == 40
    assert records[0]["repo_id"] == REPO


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "-m", REPO, "--bias", "two words=1"], "tokens, not one"),
        (["generate", "x", "-m", REPO, "--overflow", "error", "-n", "100"], "exceed the context"),
        (["generate", "x", "-m", "bard", "--draft", REPO], "cannot draft for bard"),
        (["inspect", "x", "-m", REPO, "--token", "two words"], "tokens, not one"),
        (["inspect", "x", "-m", REPO, "--layer", "99"], "layer must be 0 to"),
        (["diff", "x", "-m", "bard", "-m", REPO], "the vocabularies differ"),
        (["score", "-m", REPO], "stdin is empty"),
        (["score", "-m", REPO, "--text", "a", "--choice", ""], "a choice must not be empty"),
    ],
)
def test_what_a_vocabulary_rules_out_costs_no_weights(
    run_process: Run, server: HubServer, arguments: list[str], message: str
) -> None:
    done = run_process(*arguments, env={"HF_ENDPOINT": server.url}, code=2)
    assert message in done.stderr.decode()
    assert not server.stored()


def test_pull_list_path_and_rm(run_process: Run, server: HubServer) -> None:
    env = {"HF_ENDPOINT": server.url}
    pulled = run_process("models", "pull", REPO, env=env)
    directory = pulled.stdout.decode().strip()
    assert run_process("models", "path", REPO, env=env).stdout.decode().strip() == directory
    listed = json.loads(run_process("models", "--json", env=env).stdout)
    rows = {row["name"]: row for row in listed}
    size = sum(path.stat().st_size for path in Path(directory).iterdir())
    assert rows[REPO]["status"] == "ready"
    assert rows[REPO]["size"] == pytest.approx(size, abs=100)
    assert rows["124M"]["status"] == "not fetched"
    assert rows["bard"]["status"] == "ready"
    assert REPO in run_process("models", env=env).stdout.decode()
    run_process("models", "rm", REPO, env=env)
    gone = run_process("models", "path", REPO, env=env, code=1)
    assert b"gpt2 models pull" in gone.stderr
    again = run_process("models", "rm", REPO, env=env, code=1)
    assert b"not in the cache" in again.stderr


def test_pull_updates_what_is_cached(
    run_process: Run, server: HubServer, files: dict[str, bytes]
) -> None:
    env = {"HF_ENDPOINT": server.url}
    first = run_process("models", "pull", REPO, env=env).stdout
    server.add_repo(REPO, {**files, "README.md": b"new"})
    assert run_process("models", "pull", REPO, env=env).stdout != first


def test_what_does_not_come_from_the_hub_is_neither_pulled_nor_removed(run_main: Run) -> None:
    for command in ("pull", "rm"):
        done = run_main("models", command, "bard", code=2)
        assert b"bard does not come from the hub" in done.stderr
    assert run_main("models", "path", "bard").stdout.strip().endswith(b"bard")


def test_no_network_and_nothing_cached_is_one_sentence_with_a_way_out(run_process: Run) -> None:
    for arguments, env in (
        ([], {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        (["--offline"], {}),
        ([], {"HF_HUB_OFFLINE": "1"}),
    ):
        done = run_process("generate", "x", *arguments, env=env, code=1)
        assert done.stderr.count(b"\n") == 1
        assert b"--model bard" in done.stderr


def test_a_terminal_sees_the_download_progress(server: HubServer, tmp_path: Path) -> None:
    """`script` would do; a pseudo-terminal for stderr alone keeps stdout clean."""
    import pty

    master, slave = pty.openpty()
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-m", "gpt2cli", "models", "pull", REPO],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
        env=env,
        check=True,
    )
    os.close(slave)
    screen = b""
    while True:
        try:
            screen += os.read(master, 65536)
        except OSError:
            break
    os.close(master)
    assert b"model.safetensors" in screen
    assert done.stdout.startswith(str(tmp_path).encode())
