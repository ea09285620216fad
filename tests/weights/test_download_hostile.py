"""A hub that lies: nothing it sends becomes a path, fills the disk or ends in a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from downloads import FILES, REPO, TEXTS, WEIGHTS, Machine
from hub_server import HubServer


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag"])
@pytest.mark.parametrize(
    "etag", ["{outside}/evil.pth", "../../../../evil.pth", "..", ".", "a/b", "a\\b", "x" * 300]
)
def test_an_etag_never_becomes_a_path(
    header: str, etag: str, server: HubServer, machine: Machine, tmp_path: Path
) -> None:
    machine.home = tmp_path / "home" / "user"
    outside = tmp_path / "outside"
    outside.mkdir()
    server.headers = {header: '"' + etag.format(outside=outside) + '"'}
    result = machine.download()
    assert result.error == "DownloadError"
    assert "did not answer as a hub does" in result.message
    assert not any("evil" in name for name in tree(tmp_path))
    assert not list(outside.iterdir())


@pytest.mark.parametrize("commit", ["../..", "/tmp/x", "", "zzz"])
def test_a_commit_in_a_header_is_not_believed(
    commit: str, server: HubServer, machine: Machine
) -> None:
    server.headers = {"X-Repo-Commit": commit}
    result = machine.download()
    assert result.error in (None, "DownloadError")
    snapshots = machine.folder / "snapshots"
    assert not snapshots.exists() or all(len(p.name) == 40 for p in snapshots.iterdir())


@pytest.mark.parametrize("name", ["config.json", "merges.txt", "model.safetensors"])
def test_a_file_stops_at_the_size_that_was_announced(
    name: str, server: HubServer, machine: Machine
) -> None:
    server.endless = {name}
    result = machine.download()
    assert result.error == "DownloadError"
    assert "sends more than the" in result.message
    assert machine.download().error == "DownloadError"
    sizes = [p.stat().st_size for p in (machine.folder / "blobs").iterdir()]
    assert max(sizes) <= len(WEIGHTS)
    assert result.cached is None


def test_a_hub_that_always_begins_anew_and_never_ends_is_given_up(
    server: HubServer, machine: Machine
) -> None:
    server.ignore_range = True
    server.cut(1_000_000)
    result = machine.download()
    assert result.error == "DownloadError"
    assert "from its beginning again and again" in result.message


def test_a_small_file_without_a_size_is_bounded(server: HubServer, machine: Machine) -> None:
    server.headers = {"X-Linked-Size": str(10**9)}
    result = machine.download()
    assert result.error == "DownloadError"
    assert result.message == "config.json of owner/tiny has 1,000 MB, which no GPT-2 needs"


@pytest.mark.parametrize("size", ["-5", "x", "1e9", str(2**62), str(2**80), "0x10"])
def test_an_absurd_size_is_one_sentence(size: str, server: HubServer, machine: Machine) -> None:
    server.headers = {"X-Linked-Size": size}
    result = machine.download()
    assert result.error in (None, "DownloadError"), result.message
    if result.error:
        assert "\n" not in result.message


@pytest.mark.parametrize(
    "listing",
    [
        {"sha": 5},
        {"sha": ["a"]},
        {"sha": "../.."},
        {"siblings": [5, None, {}]},
        {"siblings": [{"rfilename": 5}, {"rfilename": None}]},
        {"siblings": {}},
        {"siblings": 7},
        [],
        5,
        None,
        "text",
    ],
    ids=str,
)
def test_a_malformed_listing_is_one_sentence(
    listing: Any, server: HubServer, machine: Machine
) -> None:
    whole = {"id": REPO, "sha": "a" * 40, "siblings": [{"rfilename": "config.json"}]}
    server.listing = json.dumps(whole | listing if isinstance(listing, dict) else listing).encode()
    result = machine.download()
    assert result.error in ("DownloadError", "WeightsError"), result
    assert "\n" not in result.message


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"{"])
def test_a_listing_that_is_no_json_is_one_sentence(
    body: bytes, server: HubServer, machine: Machine
) -> None:
    server.listing = body
    result = machine.download()
    assert result.error == "DownloadError"
    assert "did not answer as a hub does" in result.message


def test_a_redirect_leaves_the_web_in_one_sentence(
    server: HubServer, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.headers = {"Location": "file:///etc/passwd"}
    result = machine.download()
    assert result.error == "DownloadError"
    assert not any(b"root:" in p.read_bytes() for p in (machine.folder / "blobs").glob("*"))


def test_a_fifo_in_the_cache_is_not_waited_for(machine: Machine) -> None:
    result = machine.download()
    blob = (result.path / "config.json").resolve()
    for place in (blob, result.path / "merges.txt", machine.partial):
        place.unlink(missing_ok=True)
        os.mkfifo(place)
    (result.path / "model.safetensors").resolve().unlink()
    again = machine.download()
    assert again.error is None
    assert {name: (again.path / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[" * 100_000, "is not valid JSON"),
        (
            TEXTS["config.json"].replace(b'"n_layer": 1', b'"n_layer": 1' + b"0" * 400),
            "n_layers must",
        ),
        (TEXTS["config.json"][:-1] + b', "n_inner": 5}', "n_inner is 5"),
    ],
    ids=["deep", "huge", "other"],
)
def test_a_config_that_cannot_be_run_is_refused_before_the_weights(
    config: bytes, message: str, server: HubServer, machine: Machine
) -> None:
    server.add_repo(REPO, FILES | {"config.json": config})
    result = machine.download()
    assert result.error == "ConfigError"
    assert message in result.message
    assert len(result.message) < 400
    assert server.fetched() == ["config.json"]


def test_the_vocabulary_alone_may_be_that_of_a_gpt2_that_cannot_be_run(
    server: HubServer, machine: Machine
) -> None:
    config = TEXTS["config.json"][:-1] + b', "n_inner": 5}'
    server.add_repo(REPO, FILES | {"config.json": config})
    assert machine.download(vocabulary_only=True).error is None


def test_a_long_word_for_a_kind_of_model_is_cut(server: HubServer, machine: Machine) -> None:
    config = json.dumps({"model_type": "x" * 10**6}).encode()
    server.add_repo(REPO, FILES | {"config.json": config})
    result = machine.download()
    assert result.error == "WeightsError"
    assert len(result.message) < 200


@pytest.mark.parametrize(
    "name", ["\x1b]0;owned\x07.bin", "x" * 10**6 + ".bin", "\ud800.bin", "../x.bin", "a\u202e.bin"]
)
def test_a_name_that_is_not_plain_is_never_shown(
    name: str, server: HubServer, machine: Machine
) -> None:
    siblings = [{"rfilename": each} for each in (*TEXTS, name)]
    server.listing = json.dumps({"id": REPO, "sha": "a" * 40, "siblings": siblings}).encode()
    result = machine.download()
    assert result.message == (
        f"{REPO} is not a GPT-2 checkpoint: it has no weights "
        "(model.safetensors, or all of its shards)"
    )


def test_weights_larger_than_any_are_refused(server: HubServer, machine: Machine) -> None:
    machine.download(vocabulary_only=True)
    server.headers = {"X-Linked-Size": str(60 * 10**9)}
    result = machine.download()
    assert result.error == "DownloadError"
    assert result.message == ("model.safetensors of owner/tiny has 60,000 MB, which no GPT-2 needs")


def test_a_range_that_is_none_is_one_sentence(server: HubServer, machine: Machine) -> None:
    server.headers = {"Content-Range": "bytes 0-x/y"}
    result = machine.download()
    assert result.error == "DownloadError"
    assert "did not answer as a hub does" in result.message


def test_a_fifo_for_a_branch_is_not_waited_for(machine: Machine) -> None:
    ref = machine.folder / "refs" / "main"
    commit = machine.download().path.name
    ref.unlink()
    os.mkfifo(ref)
    again = machine.download()
    assert again.error is None
    assert ref.read_text() == commit


def test_what_is_up_to_date_is_not_written_again(machine: Machine) -> None:
    """As a cache that many share may be read-only."""
    machine.download()
    ref = machine.folder / "refs" / "main"
    before = ref.stat().st_ino
    machine.download()
    assert ref.stat().st_ino == before
