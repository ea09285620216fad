"""The contents of the Hugging Face hub's cache on this disk.

The cache has the hub's standard layout, so that every program of this machine shares one
copy: `models--owner--name/` with `blobs/` (the contents, named by their hash),
`snapshots/<commit>/` (links to blobs) and `refs/<revision>` (the commit of a branch or tag).
Nothing here uses the network, nor huggingface_hub; see `download`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import folders
from gpt2cli.errors import WeightsError
from gpt2cli.text.vocabulary import ADDED, VOCABULARIES
from gpt2cli.weights import layout

_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One GPT-2 in the cache.

    `revision` is the commit of `directory`; `size` counts the bytes on disk of all its
    revisions; `complete` is False while a download has yet to be finished.
    """

    repo_id: str
    revision: str
    size: int
    directory: Path
    complete: bool

    @property
    def vocabulary_only(self) -> bool:
        """Whether only the vocabulary was fetched, as by `tokenize`, and nothing else begun."""
        begun = (self.directory.parents[1] / "blobs").glob("*.incomplete")
        whole = _is_complete(self.directory, vocabulary_only=True)
        return whole and not self.complete and not any(begun)


def required_files(
    names: Collection[str], repo_id: str, *, vocabulary_only: bool = False
) -> list[str]:
    """The files of a repository that a GPT-2 needs, in the order to fetch them.

    `vocabulary_only` is for what needs no weights. Raises `WeightsError` when `names` lack
    some, or hold the weights only as pickles.
    """
    vocabulary = next((v for v in VOCABULARIES if set(v) <= set(names)), ())
    # Before the files that they add to, whose presence marks the vocabulary as complete.
    added = [name for name in ADDED if name in names]
    if vocabulary_only and vocabulary and layout.CONFIG in names:
        return [layout.CONFIG, *added, *vocabulary]
    weights = _weight_files(names)
    if not weights and (pickled := sorted(n for n in names if n.endswith(layout.PICKLED))):
        raise WeightsError(layout.refusal(repo_id, pickled[0]))
    missing = [] if layout.CONFIG in names else [layout.CONFIG]
    missing += [] if vocabulary else ["vocabulary (vocab.json and merges.txt, or tokenizer.json)"]
    missing += [] if weights else [f"weights ({layout.WEIGHTS}, or all of its shards)"]
    if missing:
        raise WeightsError(
            f"{repo_id} is not a GPT-2 checkpoint: it has no {', no '.join(missing)}"
        )
    return [layout.CONFIG, *added, *vocabulary, *weights]


def _weight_files(names: Collection[str]) -> list[str]:
    if layout.WEIGHTS in names:
        return [layout.WEIGHTS]
    totals = {int(match[1]) for name in names if (match := _SHARD.fullmatch(name))}
    if layout.INDEX not in names or len(totals) != 1:
        return []
    total = totals.pop()
    shards = [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]
    return [layout.INDEX, *shards] if shards and set(shards) <= set(names) else []


def model_directory(repo_id: str) -> Path:
    """Where the cache keeps a repository; it need not exist."""
    return folders.hub_cache() / "--".join(["models", *repo_id.split("/")])


def cached_snapshot(
    repo_id: str, revision: str = "main", *, vocabulary_only: bool = False
) -> Path | None:
    """The directory of a complete snapshot in the cache, else None. Needs no network.

    `revision` is a branch, a tag or a whole commit hash; `vocabulary_only` accepts a
    snapshot without weights.
    """
    folder = model_directory(repo_id)
    is_commit = COMMIT.fullmatch(revision)
    commit = revision if is_commit else _read(folder / "refs" / revision).strip()
    snapshot = folder / "snapshots" / commit
    if not COMMIT.fullmatch(commit):
        return None
    return snapshot if _is_complete(snapshot, vocabulary_only=vocabulary_only) else None


def _read(path: Path) -> str:
    """The text of a file of the cache; none when it cannot be read."""
    try:  # os.path, because Path.is_file raises for a name that is too long
        return path.read_text("utf-8") if os.path.isfile(path) else ""  # opening a FIFO would block
    except (OSError, ValueError):
        return ""


def _is_complete(snapshot: Path, *, vocabulary_only: bool = False) -> bool:
    try:
        names = {path.name for path in snapshot.iterdir() if path.is_file()}
        required_files(names, "", vocabulary_only=vocabulary_only)
    except (OSError, WeightsError):
        return False
    return True


def cached_models() -> list[CachedModel]:
    """Every GPT-2 in the cache, by name; those half downloaded are among them."""
    found = (_cached_model(folder) for folder in sorted(folders.hub_cache().glob("models--*")))
    return [model for model in found if model]


def _cached_model(folder: Path) -> CachedModel | None:
    repo_id = "/".join(folder.name.split("--")[1:])
    snapshot = cached_snapshot(repo_id) or _newest(folder / "snapshots")
    if snapshot is None or model_type(snapshot) != "gpt2":
        return None
    return CachedModel(repo_id, snapshot.name, _size(folder), snapshot, _is_complete(snapshot))


def _newest(snapshots: Path) -> Path | None:
    directories = (path for path in snapshots.glob("*") if path.is_dir())
    return max(directories, key=lambda path: path.stat().st_mtime, default=None)


def model_type(snapshot: Path) -> str | None:
    """What config.json says that a snapshot is; None when it does not say."""
    try:
        config = json.loads(_read(snapshot / layout.CONFIG))
    except (ValueError, RecursionError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else None


def _size(folder: Path) -> int:
    """Bytes on disk; the links of snapshots do not count twice."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def remove(repo_id: str) -> int:
    """Delete every revision of a model from the cache and return the bytes freed.

    Raises `WeightsError` when the model is not in the cache, or is not ours to delete.
    """
    folder = model_directory(repo_id)
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        raise WeightsError(f"{repo_id} is not in the cache ({folder.parent})")
    if folder.is_symlink():
        raise WeightsError(f"{folder} is a link; remove it and {folder.resolve()} yourself")
    size = _size(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise WeightsError(f"cannot remove {error.filename}: {error.strerror}") from error
    shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
    return size
