"""A hub that lies: nothing it sends becomes a path, fills the disk or ends in a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from test_download import FILES, REPO, WEIGHTS, Machine, machine, server

__all__ = ["machine", "server"]  # fixtures


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
