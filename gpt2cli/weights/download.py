"""Downloads from the Hugging Face hub into its cache: resumable, verified, safe side by side.

huggingface_hub makes the requests. This module adds partial files that the next process
resumes, a check of the hash that large files are named by, and distrust of the hub: nothing
that it sends becomes a path unless it is a plain name, and no file grows beyond the size that
was announced.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from gpt2cli import folders
from gpt2cli.config.hub import read_hub_config
from gpt2cli.errors import DownloadError, GPT2CLIError, UsageError, WeightsError, shown
from gpt2cli.files import atomic
from gpt2cli.weights import cache, layout

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from gpt2cli.progress import Progress

_CHUNK = 256 * 1024
_SMALL = 64 * 2**20  # bytes; no file but weights needs as many
_LARGE = 50 * 10**9  # bytes of weights; huggingface_hub fetches no larger file over HTTP
_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
_ETAG = re.compile(r"[0-9A-Za-z_-]{1,128}")  # a hash, as a rule: it becomes a file's name
_ATTEMPTS = 10  # at a file that the hub cannot send from the middle
_NO_NETWORK_NEEDED = "use model bard, which is bundled and needs no network"


def download(
    repo_id: str,
    *,
    revision: str = "main",
    offline: bool = False,
    vocabulary_only: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Bring a model up to date with the hub and return its directory in the cache.

    Only the files that a GPT-2 needs are fetched, or those of its vocabulary. A download that
    was interrupted, in whatever way, resumes; until it is complete, an older snapshot stays
    the current one.
    Raises `UsageError` for what the hub does not have, `WeightsError` for what is no GPT-2 and
    `ConfigError` for one that cannot be run, before its weights are fetched, and
    `DownloadError` when the hub cannot be reached or refuses the request.
    """
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        if cached := cache.cached_snapshot(repo_id, revision, vocabulary_only=vocabulary_only):
            return cached
        raise DownloadError(
            f"{repo_id} is not in the cache, and the network is not to be used; "
            f"switch that off (offline, HF_HUB_OFFLINE), or {_NO_NETWORK_NEEDED}",
            "offline",
            "model",
        )
    with _quiet_hub():
        try:
            return _download(repo_id, revision, vocabulary_only, progress)
        except (_http_error(), OSError) as error:
            raise _explain(error, repo_id, revision) from error


def _download(
    repo_id: str, revision: str, vocabulary_only: bool, progress: Progress | None
) -> Path:
    commit, names = _listing(repo_id, revision)
    snapshot = cache.model_directory(repo_id) / "snapshots" / commit
    for name in cache.required_files(names, repo_id, vocabulary_only=vocabulary_only):
        if not (snapshot / name).is_file():
            _link(_fetch(repo_id, commit, name, progress), snapshot / name)
        if name != layout.CONFIG:
            continue
        # Checked before gigabytes of another model are fetched.
        if (kind := cache.model_type(snapshot)) not in (None, "gpt2"):
            raise WeightsError(f"{repo_id} is a {shown(kind)} model; gpt2cli runs GPT-2 alone")
        if not vocabulary_only:
            read_hub_config(snapshot / name)
    if revision != commit:
        _write_ref(cache.model_directory(repo_id) / "refs" / revision, commit)
    return snapshot


def _listing(repo_id: str, revision: str) -> tuple[str, set[str]]:
    """The commit that a revision stands for now, and the plain names among its files."""
    from huggingface_hub import HfApi, constants, errors

    with _understood():
        try:
            timeout = constants.HF_HUB_ETAG_TIMEOUT
            info = HfApi().model_info(repo_id, revision=revision, timeout=timeout)
        except errors.HFValidationError:
            raise UsageError(
                f"{repo_id!r} cannot name a model; names look like owner/name"
            ) from None
        names = {str(sibling.rfilename) for sibling in info.siblings or ()}
    if not cache.COMMIT.fullmatch(str(info.sha)):
        raise _not_a_hub()
    return str(info.sha), {name for name in names if _NAME.fullmatch(name)}


@contextmanager
def _understood() -> Iterator[None]:
    """Turn huggingface_hub's failures on an unexpected answer into a `DownloadError`."""
    try:
        yield
    except (_http_error(), OSError):  # some are ValueErrors as well
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _not_a_hub() from error


def _write_ref(path: Path, commit: str) -> None:
    if path.is_file() and path.read_bytes() == commit.encode():
        return  # also where the cache cannot be written
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(commit, encoding="utf-8")


def _fetch(repo_id: str, commit: str, name: str, progress: Progress | None) -> Path:
    """Make the blob of one file present and verified. → its path

    huggingface_hub's own download begins anew in every process, which gigabytes over a
    weak line do not survive; here the partial file is kept, named by its hash.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    # Public, but exported lazily, which a type checker does not see.
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = cache.model_directory(repo_id)
    url = hf_hub_url(repo_id, name, revision=commit)
    with _understood():
        metadata = get_hf_file_metadata(url)
    etag, size = metadata.etag or "", metadata.size or 0
    if not _ETAG.fullmatch(etag) or size < 0:
        raise _not_a_hub()
    if size > (_LARGE if name.endswith(".safetensors") else _SMALL):
        raise DownloadError(f"{name} of {repo_id} has {size / 1e6:,.0f} MB, which no GPT-2 needs")
    blob = folder / "blobs" / etag
    partial = blob.with_name(f"{etag}.incomplete")
    # The lock that hf_hub_download takes too, so that other programs keep out.
    lock = folder.parent / ".locks" / folder.name / f"{etag}.lock"
    for directory in (blob.parent, lock.parent):
        directory.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.is_file():
            report = progress or (lambda *_: None)
            if partial.is_fifo():  # opening it would block until it has a reader
                partial.unlink()
            _fill(partial, url, size, name, lambda done: report(name, done, size))
            _verify(partial, etag, name)
            os.replace(partial, blob)
    return blob


def _link(blob: Path, place: Path) -> None:
    """Link a snapshot's file to a blob, or copy it where links do not work."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        shutil.copyfile(blob, temporary)
    os.replace(temporary, place)


class _Sink(io.BufferedWriter):
    """A file open for appending, that reports its length in bytes after every write.

    Raises `DownloadError`, and is emptied, when it would have more than `most`, or begins anew
    for the last of `_ATTEMPTS` times.
    """

    def __init__(self, path: Path, most: int, report: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path, "ab"))
        self._most, self._report, self._begun = most, report, 0

    def truncate(self, pos: int | None = None, /) -> int:
        self._begun += 1
        if self._begun > _ATTEMPTS:
            raise DownloadError(
                "the hub sends a file from its beginning again and again; try again later"
            )
        return super().truncate(pos)

    def write(self, data: ReadableBuffer, /) -> int:
        if self.tell() + memoryview(data).nbytes > self._most:
            self.truncate(0)
            raise DownloadError(
                f"the hub sends more than the {self._most:,} bytes that a file of this model has; "
                "what came was deleted"
            )
        written = super().write(data)
        self._report(self.tell())
        return written


def _fill(partial: Path, url: str, size: int, name: str, report: Callable[[int], None]) -> None:
    """Append to a partial file until it has `size` bytes (0: as many as there are).

    `url` is the hub's own, not where it redirects to: the HTTP client then drops the token
    on the way to another host, and every retry gets a fresh redirect.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
    total = size or None
    started_over = False
    while True:
        with _Sink(partial, size or _SMALL, report) as sink:
            if size and sink.tell() > size:
                sink.seek(sink.truncate(0))
            report(before := sink.tell())
            _check_space(partial, size - before)
            try:
                with _understood():
                    http_get(url, sink, resume_size=before, headers=headers, expected_size=total)
                return
            except HfHubHTTPError as error:
                if error.response.status_code != 416 or started_over:
                    raise
                started_over = True
                sink.truncate(0)
            except (_http_error(), OSError) as error:
                if getattr(error, "errno", None):  # a disk error
                    raise
                # A connection that drops often succeeds too, as long as some bytes arrive.
                if sink.tell() <= before:
                    raise DownloadError(
                        f"the download of {name} broke off at {sink.tell() / 1e6:.1f} of "
                        f"{size / 1e6:.1f} MB; run the command again, and it resumes there"
                    ) from error


def _check_space(path: Path, needed: int) -> None:
    # Some network disks report 0 for unknown.
    if 0 < shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _verify(partial: Path, etag: str, name: str) -> None:
    """Compare a finished file with its hash, where the hub's etag is one."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return
    digest = hashlib.sha256()
    with partial.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != etag:
        partial.unlink()
        raise DownloadError(
            f"{name} arrived damaged (its SHA-256 is not the hub's) and was deleted; "
            "run the command again"
        )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Make huggingface_hub write nothing, report nothing, and read plain HTTP in small chunks.

    A chunk is the unit of progress, and what is lost when a connection breaks.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import logging as hub_logging
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    settings = vars(constants)
    ours = {
        "DOWNLOAD_CHUNK_SIZE": _CHUNK,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_XET": True,
    }
    before = {key: settings[key] for key in ours}
    verbosity, bars = hub_logging.get_verbosity(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            settings.update(ours)
            hub_logging.set_verbosity(logging.CRITICAL)
            disable_progress_bars()
            yield
        finally:
            settings.update(before)
            hub_logging.set_verbosity(verbosity)
            if bars:
                enable_progress_bars()


def _http_error() -> type[Exception]:
    """The base of the errors of the HTTP library, of which huggingface_hub has had three."""
    from huggingface_hub.errors import HfHubHTTPError

    kinds = [kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception)]
    ours = ("builtins", "huggingface_hub")
    return [kind for kind in kinds if kind.__module__.split(".")[0] not in ours][-1]


def _explain(error: Exception, repo_id: str, revision: str) -> GPT2CLIError:
    """The sentence for what huggingface_hub, the network or the disk raised."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = cast(Exception, error.__cause__)
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.GatedRepoError():
            return DownloadError(
                f"{repo_id} is gated: accept its terms at {constants.ENDPOINT}/{repo_id}, "
                "then set HF_TOKEN to a token of that account"
            )
        # The hub does not tell a stranger whether a model is private or does not exist.
        case _ if status == 401 and not get_token():
            return _unknown(repo_id)
        case errors.RepositoryNotFoundError():
            return _unknown(repo_id)
        case errors.RevisionNotFoundError():
            return UsageError(f"{repo_id} has no revision {revision!r} on the hub")
        case errors.HfHubHTTPError():
            advice = "check HF_TOKEN" if status in (401, 403) else "try again later"
            return DownloadError(f"the hub answered HTTP {status} for {repo_id}; {advice}")
        case OSError(errno=errno.ENOSPC):
            return DownloadError(
                f"the disk of {folders.hub_cache()} is too full for {repo_id}; free some "
                "space, or set HF_HOME to a directory on another, and run the command again"
            )
        case OSError(errno=int()):
            return DownloadError(
                f"cannot use {error.filename or folders.hub_cache()}: {error.strerror}"
            )
    if isinstance(error, _http_error()):
        return _unreachable(repo_id, revision)
    return DownloadError(f"a file of {repo_id} arrived incomplete; run the command again")


def _unknown(repo_id: str) -> UsageError:
    return UsageError(
        f"there is no model {repo_id!r} on the hub; check the spelling, "
        "or set HF_TOKEN if it is private"
    )


def _unreachable(repo_id: str, revision: str) -> DownloadError:
    from huggingface_hub import constants

    if cache.cached_snapshot(repo_id, revision):
        purpose, advice = f"update {repo_id}", "use the copy in the cache"
    else:
        purpose = f"fetch {repo_id}, which is not in the cache"
        advice = _NO_NETWORK_NEEDED
    return DownloadError(
        f"cannot reach {constants.ENDPOINT} to {purpose}; check the network, or {advice}",
        "model",
    )


def _not_a_hub() -> DownloadError:
    from huggingface_hub import constants

    return DownloadError(
        f"{constants.ENDPOINT} did not answer as a hub does; check HF_ENDPOINT, and whether "
        "the network wants a login first"
    )
