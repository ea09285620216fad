"""Which files a GPT-2 needs, and what is in the hub's cache on this disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2cli.errors import WeightsError
from gpt2cli.weights.cache import (
    CachedModel,
    cached_models,
    cached_snapshot,
    remove,
    required_files,
)

REPO = "owner/tiny"
TEXTS = {
    "config.json": b'{"model_type": "gpt2"}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2\n",
}
FILES = {**TEXTS, "model.safetensors": bytes(1000)}


# Which files a GPT-2 needs


def test_tokenizer_json_goes_before_vocab_and_merges_and_what_adds_to_either_is_fetched() -> None:
    added = ["added_tokens.json", "tokenizer_config.json"]
    found = required_files({*FILES, "tokenizer.json", *added}, REPO)
    assert found == ["config.json", *added, "tokenizer.json", "model.safetensors"]
    config, *others = FILES
    assert required_files({*FILES, added[0]}, REPO) == [config, added[0], *others]
    found = required_files({*FILES, *added}, REPO, vocabulary_only=True)
    assert found == ["config.json", *added, "vocab.json", "merges.txt"]
    assert required_files({"config.json", "tokenizer.json", "model.safetensors"}, REPO) == [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["vocab.json", "merges.txt", "model.safetensors"], "no config.json"),
        (["config.json", "vocab.json", "model.safetensors"], "no vocabulary"),
        (["config.json", "tokenizer.json"], "no weights"),
        ([], "no config.json, no vocabulary"),
        (
            [*TEXTS, "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "no weights",
        ),
        (
            [*TEXTS, "model.safetensors.index.json", "model-00000-of-00000.safetensors"],
            "no weights",
        ),
    ],
)
def test_what_is_missing_is_listed(names: list[str], missing: str) -> None:
    with pytest.raises(WeightsError, match=f"x/y is not a GPT-2 checkpoint: it has {missing}"):
        required_files(names, "x/y")


# What is in the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, repo_id: str, files: dict[str, bytes], digit: str = "a") -> Path:
    """Lay files out as the hub's cache does, with links, in a commit of one repeated digit."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / (digit * 40)
    for directory in (snapshot, folder / "blobs", folder / "refs"):
        directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def point(snapshot: Path, revision: str = "main") -> None:
    (snapshot.parent.parent / "refs" / revision).write_text(snapshot.name)


def test_a_snapshot_is_found_by_branch_and_by_commit(cache: Path) -> None:
    snapshot = put(cache, REPO, FILES)
    assert cached_snapshot(REPO) is None
    point(snapshot)
    assert cached_snapshot(REPO) == snapshot
    assert cached_snapshot(REPO, "a" * 40) == snapshot
    assert cached_snapshot(REPO, "b" * 40) is None
    assert cached_snapshot(REPO, "dev") is None


@pytest.mark.parametrize("lost", FILES)
def test_an_incomplete_snapshot_is_none(cache: Path, lost: str) -> None:
    snapshot = put(cache, REPO, FILES)
    point(snapshot)
    (snapshot / lost).resolve().unlink()  # the blob: the link now leads nowhere
    assert cached_snapshot(REPO) is None


@pytest.mark.parametrize("ref", ["", "main", "../../..", "a" * 39, "\xff\xfe"])
def test_a_damaged_ref_is_none(cache: Path, ref: str) -> None:
    snapshot = put(cache, REPO, FILES)
    (snapshot.parent.parent / "refs" / "main").write_bytes(ref.encode("latin-1"))
    assert cached_snapshot(REPO) is None


@pytest.mark.parametrize("repo_id", ["", "/", "..", "../..", "a/b/c", "x" * 300])
def test_an_odd_name_is_just_not_cached(cache: Path, repo_id: str) -> None:
    assert cached_snapshot(repo_id) is None
    with pytest.raises(WeightsError, match="is not in the cache"):
        remove(repo_id)


def test_the_gpt2_models_are_listed(cache: Path) -> None:
    assert cached_models() == []
    whole = put(cache, REPO, FILES)
    point(whole)
    partly = put(cache, "gpt2", TEXTS)
    put(cache, "meta/llama", FILES | {"config.json": b'{"model_type": "llama"}'})
    put(cache, "owner/broken", {"config.json": b"{"})
    put(cache, "owner/empty", {})
    (cache / "models--stray").write_text("a file")
    texts, size = sum(map(len, TEXTS.values())), sum(map(len, FILES.values())) + len("a" * 40)
    assert cached_models() == [
        CachedModel("gpt2", "a" * 40, texts, partly, complete=False),
        CachedModel(REPO, "a" * 40, size, whole, complete=True),
    ]


def test_during_an_update_the_complete_snapshot_is_the_one_listed(cache: Path) -> None:
    point(old := put(cache, REPO, FILES))
    put(cache, REPO, TEXTS | {"config.json": b'{"model_type": "gpt2", "n": 1}'}, digit="b")
    (model,) = cached_models()
    assert (model.directory, model.complete) == (old, True)


def test_a_vocabulary_alone_is_told_from_a_download_that_broke_off(cache: Path) -> None:
    point(put(cache, REPO, FILES))
    put(cache, "gpt2", TEXTS)
    put(cache, "owner/less", {"config.json": TEXTS["config.json"]})
    alone = {model.repo_id: model.vocabulary_only for model in cached_models()}
    assert alone == {"gpt2": True, "owner/less": False, REPO: False}
    (cache / "models--gpt2" / "blobs" / "0.incomplete").write_bytes(bytes(10))
    assert not any(model.vocabulary_only for model in cached_models())


def test_remove_frees_what_was_counted(cache: Path) -> None:
    point(put(cache, REPO, FILES))
    put(cache, "gpt2", TEXTS)
    blobs = cache / "models--owner--tiny" / "blobs"
    (blobs / "0.incomplete").write_bytes(bytes(1000))
    listed = {model.repo_id: model.size for model in cached_models()}
    assert remove(REPO) == listed[REPO] == sum(map(len, FILES.values())) + 40 + 1000
    assert [model.repo_id for model in cached_models()] == ["gpt2"]
    assert [path.name for path in cache.iterdir()] == ["models--gpt2"]
    with pytest.raises(WeightsError, match="owner/tiny is not in the cache"):
        remove(REPO)


def test_a_config_nested_without_end_is_no_gpt2(cache: Path) -> None:
    put(cache, REPO, FILES | {"config.json": b"[" * 100_000})
    assert cached_models() == []


def test_a_link_is_not_followed_to_delete(cache: Path, tmp_path_factory: Any) -> None:
    put(cache, REPO, FILES)
    elsewhere = (cache / "models--owner--tiny").rename(tmp_path_factory.mktemp("disk") / "tiny")
    (cache / "models--owner--tiny").symlink_to(elsewhere)
    assert [model.repo_id for model in cached_models()] == [REPO]
    with pytest.raises(WeightsError, match=f"is a link; remove it and {elsewhere} yourself"):
        remove(REPO)
    assert (elsewhere / "snapshots").is_dir()


def test_no_fifo_is_waited_for(cache: Path) -> None:
    snapshot = put(cache, REPO, FILES)
    point(snapshot)
    for path in (snapshot / "config.json", snapshot.parent.parent / "refs" / "main"):
        path.unlink()
        os.mkfifo(path)
    code = (
        "from gpt2cli.weights import cache;"
        "print(cache.cached_snapshot('owner/tiny'), cache.cached_models())"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60
    )
    assert (done.stdout, done.stderr) == ("None []\n", "")


def test_looking_into_the_cache_is_cheap() -> None:
    code = (
        "import sys; from gpt2cli.weights import cache;"
        "cache.cached_snapshot('x/y'); cache.cached_models();"
        "print([m for m in ('httpx', 'httpx2', 'requests', 'torch', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
