"""What a download does, what it survives, and what it says when it fails."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from downloads import CLUTTER, FILES, REPO, TEXTS, WEIGHTS, Machine, finish
from helpers import needs_full_device
from hub_server import HubServer


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What a download does


def test_only_the_needed_files_are_fetched_from_one_commit(
    server: HubServer, machine: Machine
) -> None:
    result = machine.download()
    commit = server.repos[REPO].refs["main"]
    assert result.path == result.cached == machine.folder / "snapshots" / commit
    assert contents(result.path) == FILES
    assert (machine.folder / "refs" / "main").read_text() == commit
    assert server.fetched() == list(FILES)
    listings = [r.path for r in server.requests if "/api/" in r.path]
    assert listings == [f"/api/models/{REPO}/revision/main"]
    assert all(f"/resolve/{commit}/" in r.path for r in server.requests if "/resolve/" in r.path)


def test_progress_counts_each_file_up_to_its_size(machine: Machine) -> None:
    calls = machine.download().progress
    weights = [done for name, done, _ in calls if name == "model.safetensors"]
    assert weights == sorted(weights)
    assert weights[0] == 0
    assert len(weights) > 4
    assert {call for call in calls if call[1] == call[2]} == {
        (name, len(data), len(data)) for name, data in FILES.items()
    }


def test_a_complete_snapshot_costs_one_request(server: HubServer, machine: Machine) -> None:
    first = machine.download()
    server.requests.clear()
    second = machine.download()
    assert (second.path, second.progress) == (first.path, [])
    assert len(server.requests) == 1


def test_shards_are_fetched_with_their_index(server: HubServer, machine: Machine) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": WEIGHTS[:i] for i in (1, 2)}
    index = {"model.safetensors.index.json": b'{"weight_map": {}}'}
    server.add_repo(REPO, TEXTS | index | shards | CLUTTER)
    assert contents(machine.download().path) == TEXTS | index | shards


def test_weights_outside_large_file_storage_work_too(server: HubServer, machine: Machine) -> None:
    server.add_repo(REPO, FILES, lfs=[])
    assert contents(machine.download().path) == FILES
    assert not server.stored()


def test_a_renamed_repository_is_followed(server: HubServer, machine: Machine) -> None:
    server.rename("tiny", REPO)
    result = machine.download("tiny")
    assert contents(result.path) == FILES
    assert result.path.parent.parent.name == "models--tiny"


def test_a_branch_or_a_commit_can_be_asked_for(server: HubServer, machine: Machine) -> None:
    old = server.add_repo(REPO, FILES, revision="dev")
    assert machine.download(revision="dev").path.name == old
    assert (machine.folder / "refs" / "dev").read_text() == old
    assert machine.download(revision=old).path.name == old
    assert [path.name for path in (machine.folder / "refs").iterdir()] == ["dev"]


def test_the_token_goes_to_the_hub_and_nowhere_else(server: HubServer, machine: Machine) -> None:
    server.token = machine.env["HF_TOKEN"] = "hf_secret"
    server.cut(1_000_000, times=1)
    assert contents(machine.download().path) == FILES
    assert {r.authorization for r in server.requests if not r.on_cdn} == {"Bearer hf_secret"}
    assert [r.authorization for r in server.stored()] == [None, None]


# What a download survives


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_breaks_is_resumed(
    server: HubServer, machine: Machine, reset: bool
) -> None:
    server.cut(1_000_000, times=1, reset=reset)
    assert contents(machine.download().path) == FILES
    first, second = server.stored()
    assert first.range is None
    assert second.range is not None
    assert second.range.startswith("bytes=")


def test_another_process_resumes_a_download_that_gave_up(
    server: HubServer, machine: Machine
) -> None:
    server.cut(1_000_000)
    failed = machine.download()
    assert failed.error == "DownloadError"
    assert failed.message.endswith("2.0 MB; run the command again, and it resumes there")
    assert failed.cached is None
    assert resumes(server, machine)


def resumes(server: HubServer, machine: Machine) -> bool:
    """Whether the next download asks for just what the partial file lacks, and succeeds."""
    server.cut_at, server.pause = None, 0.0
    server.requests.clear()
    have = machine.partial.stat().st_size
    assert 0 < have < len(WEIGHTS)
    assert contents(machine.download().path) == FILES
    return [r.range for r in server.stored()] == [f"bytes={have}-"]


def test_a_killed_download_resumes(server: HubServer, machine: Machine) -> None:
    server.pause = 0.05
    process = machine.start()
    wait_for(lambda: machine.partial.exists() and machine.partial.stat().st_size > 500_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert resumes(server, machine)


def test_an_interrupted_download_resumes(server: HubServer, machine: Machine) -> None:
    assert machine.download(stop_at=1_000_000).error == "KeyboardInterrupt"
    assert resumes(server, machine)


def test_two_at_once_download_the_weights_once(server: HubServer, machine: Machine) -> None:
    server.pause = 0.02
    both = [machine.start(impatient=False) for _ in range(2)]
    results = [finish(process) for process in both]
    assert [contents(result.path) for result in results] == [FILES, FILES]
    assert len(server.stored()) == 1


def test_a_server_that_ignores_ranges_sends_everything_again(
    server: HubServer, machine: Machine
) -> None:
    server.ignore_range = True
    server.cut(1_000_000, times=1)
    assert contents(machine.download().path) == FILES


def test_a_partial_file_that_is_too_long_is_begun_anew(server: HubServer, machine: Machine) -> None:
    machine.partial.parent.mkdir(parents=True)
    machine.partial.write_bytes(WEIGHTS + b"more")
    assert contents(machine.download().path) == FILES
    assert [r.range for r in server.stored()] == [None]


def test_a_partial_file_that_is_whole_needs_no_download(
    server: HubServer, machine: Machine
) -> None:
    machine.partial.parent.mkdir(parents=True)
    machine.partial.write_bytes(WEIGHTS)
    assert contents(machine.download().path) == FILES
    assert not server.stored()


@pytest.mark.parametrize("fault", ["cut", "refusal", "not a gpt2"])
def test_the_old_snapshot_survives_a_failed_update(
    server: HubServer, machine: Machine, fault: str
) -> None:
    old = machine.download().path
    update = FILES | {"model.safetensors": WEIGHTS[::-1]}
    new = server.add_repo(REPO, update)
    if fault == "cut":
        server.cut(1_000_000)
    elif fault == "refusal":
        server.status, server.status_for = 500, "/resolve/"
    else:
        new = server.add_repo(REPO, update | {"config.json": b'{"model_type": "llama"}'})
    failed = machine.download()
    assert failed.error in ("DownloadError", "WeightsError")
    assert failed.cached == old
    assert contents(old) == FILES
    server.cut_at = server.status = None
    if fault != "not a gpt2":
        result = machine.download()
        assert result.path == result.cached == old.with_name(new)
        assert contents(result.path) == update


# What a download says when it fails


def test_weights_that_are_not_what_the_hub_promised_are_deleted(
    server: HubServer, machine: Machine
) -> None:
    server.spoil = True
    result = machine.download()
    assert (result.error, result.cached) == ("DownloadError", None)
    assert "its SHA-256 is not the hub's" in result.message
    assert not machine.partial.exists()
    server.spoil = False
    assert contents(machine.download().path) == FILES


def test_weights_that_end_early_are_an_error(server: HubServer, machine: Machine) -> None:
    server.shorten = 1_500_000
    result = machine.download()
    assert (result.error, result.cached) == ("DownloadError", None)


def test_no_network(machine: Machine) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        machine.endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = machine.download()
    assert result.error == "DownloadError"
    assert result.message == (
        f"cannot reach {machine.endpoint} to fetch owner/tiny, which is not in the cache; check "
        "the network, or use model bard, which is bundled and needs no network"
    )


def test_no_network_for_an_update(machine: Machine) -> None:
    machine.download()
    machine.endpoint = "http://127.0.0.1:9"
    result = machine.download()
    assert result.error == "DownloadError"
    assert "to update owner/tiny" in result.message


@pytest.mark.parametrize("by", ["option", "environment"])
def test_offline(server: HubServer, machine: Machine, by: str) -> None:
    options = {"offline": True} if by == "option" else {}
    online, machine.env = machine.env, {"HF_HUB_OFFLINE": "1"} if by == "environment" else {}
    result = machine.download(**options)
    assert result.error == "DownloadError"
    assert "owner/tiny is not in the cache, and the network is not to be used" in result.message
    assert "model bard" in result.message
    assert not server.requests
    offline, machine.env = machine.env, online
    path = machine.download().path
    server.requests.clear()
    machine.env = offline
    assert machine.download(**options).path == path
    assert not server.requests


@pytest.mark.parametrize("status", [404, 401])
def test_an_unknown_repository(server: HubServer, machine: Machine, status: int) -> None:
    server.unknown_status = status
    result = machine.download("owner/typo")
    assert result.error == "UsageError"
    assert result.message.startswith("there is no model 'owner/typo' on the hub; check the spel")


def test_an_unknown_revision(machine: Machine) -> None:
    result = machine.download(revision="nope")
    assert (result.error, result.message) == (
        "UsageError",
        "owner/tiny has no revision 'nope' on the hub",
    )


def test_a_name_that_cannot_be_a_repository(server: HubServer, machine: Machine) -> None:
    result = machine.download("owner/tiny/more")
    assert result.error == "UsageError"
    assert "names look like owner/name" in result.message
    assert not server.requests


@pytest.mark.parametrize("token", [None, "hf_not_granted"])
def test_a_gated_repository(server: HubServer, machine: Machine, token: str | None) -> None:
    server.gated.add(REPO)
    machine.env = {"HF_TOKEN": token} if token else {}
    result = machine.download()
    assert (result.error, result.message) == (
        "DownloadError",
        f"owner/tiny is gated: accept its terms at {server.url}/owner/tiny, "
        "then set HF_TOKEN to a token of that account",
    )


def test_a_token_that_is_refused(server: HubServer, machine: Machine) -> None:
    server.token, machine.env = "hf_good", {"HF_TOKEN": "hf_expired"}
    result = machine.download()
    assert (result.error, result.message) == (
        "DownloadError",
        "the hub answered HTTP 401 for owner/tiny; check HF_TOKEN",
    )


@pytest.mark.parametrize(("status", "where"), [(500, "/api/"), (503, ".json"), (502, "/resolve/")])
def test_a_hub_that_is_down(server: HubServer, machine: Machine, status: int, where: str) -> None:
    server.status, server.status_for = status, where
    result = machine.download()
    assert (result.error, result.message) == (
        "DownloadError",
        f"the hub answered HTTP {status} for owner/tiny; try again later",
    )


def test_something_that_is_not_a_hub(server: HubServer, machine: Machine) -> None:
    server.status = 200
    result = machine.download()
    assert result.error == "DownloadError"
    assert result.message.startswith(f"{server.url} did not answer as a hub does; check HF_ENDP")


@needs_full_device
def test_a_full_disk(machine: Machine) -> None:
    machine.partial.parent.mkdir(parents=True)
    machine.partial.symlink_to("/dev/full")
    result = machine.download()
    assert result.error == "DownloadError"
    assert f"the disk of {machine.home / 'hub'} is too full for owner/tiny" in result.message


def test_a_cache_that_cannot_be_written(machine: Machine) -> None:
    (machine.home / "hub").write_text("a file where a directory has to be")
    result = machine.download()
    assert result.error == "DownloadError"
    assert result.message.startswith(f"cannot use {machine.home / 'hub'}")


def test_pickled_weights_are_refused(server: HubServer, machine: Machine) -> None:
    server.add_repo(REPO, TEXTS | CLUTTER)
    result = machine.download()
    assert result.error == "WeightsError"
    assert "only pickled weights (pytorch_model.bin)" in result.message
    assert not server.fetched()


def test_another_architecture_is_refused_before_its_weights(
    server: HubServer, machine: Machine
) -> None:
    server.add_repo(REPO, FILES | {"config.json": b'{"model_type": "llama"}'})
    result = machine.download()
    assert (result.error, result.message) == (
        "WeightsError",
        "owner/tiny is a 'llama' model; gpt2cli runs GPT-2 alone",
    )
    assert server.fetched() == ["config.json"]
