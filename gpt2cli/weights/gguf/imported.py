"""A GGUF file as a checkpoint: converted once, kept on this disk, and read like any other model.

So every decoder, memory mapping and the quantized weights work as they do elsewhere. The
directory is named by where the file lies and what it holds; its weights come last, so that with
them it is a model.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from gpt2cli import folders
from gpt2cli.errors import WeightsError
from gpt2cli.files import check_space, fingerprint
from gpt2cli.progress import Progress
from gpt2cli.text.vocabulary import VOCABULARY
from gpt2cli.weights import checkpoint, layout
from gpt2cli.weights.gguf import model as gguf_model
from gpt2cli.weights.safetensors import read_metadata, write_text

_SOURCE = "gguf"  # the key, in the weights' metadata, of the file that they are from


def directory(path: Path, *, vocabulary_only: bool = False) -> Path | None:
    """Where a file has been converted to; None if it has not, or has changed since.

    `vocabulary_only` is for what needs no weights. Raises `WeightsError` if it cannot be read.
    """
    place = _place(path)
    wanted = VOCABULARY if vocabulary_only else (*VOCABULARY, layout.WEIGHTS)
    return place if all((place / name).is_file() for name in (layout.CONFIG, *wanted)) else None


def convert(path: Path, *, vocabulary_only: bool = False, progress: Progress | None = None) -> Path:
    """The directory of a file's weights, in the precision of the file; fp32 of quantized ones.

    `progress` is called with the bytes written. Raises `WeightsError` or `ConfigError` for a file
    that is damaged or no GPT-2, and where there is no room; `UsageError` without the gguf package.
    """
    if kept := directory(path, vocabulary_only=vocabulary_only):
        return kept
    place, model = _place(path), gguf_model.read(path)
    files, dtypes, end_of_text = model.vocabulary_files(), model.dtypes(), model.end_of_text()
    if not vocabulary_only:
        check_space(place, model.bytes)
    checkpoint.write_config(model.config, place, end_of_text, dtypes["token_embedding.weight"])
    for name, text in files.items():
        write_text(text, place / name)
    if not vocabulary_only:
        source = {_SOURCE: str(path.resolve())}
        weights = model.tensors()
        checkpoint.write(
            model.config, weights, dtypes, place, end_of_text, metadata=source, progress=progress
        )
        if _place(path) != place:
            _discard(place)
            raise WeightsError(f"{path} was replaced while it was read; run the command again")
        for older in set(_places(path)) - {place}:
            _discard(older)
    return place


def remove(path: Path) -> int:
    """Delete what a file was converted to, now or before it changed; returns the bytes freed."""
    return sum(map(_discard, _places(path)))


def prune() -> int:
    """Delete what files that are gone were converted to; returns the bytes freed."""
    freed = 0
    for place in _folder().glob("*-*"):
        try:
            source = read_metadata(place / layout.WEIGHTS).get(_SOURCE, "")
        except WeightsError:
            continue
        if not os.path.exists(source):
            freed += _discard(place)
    return freed


def _folder() -> Path:
    return folders.assets() / "gguf"


def _location(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]


def _places(path: Path) -> list[Path]:
    """The directories of a file, as it is now and as it was."""
    return list(_folder().glob(f"{_location(path)}-*"))


def _place(path: Path) -> Path:
    try:
        return _folder() / f"{_location(path)}-{fingerprint([path])[:16]}"
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None


def _discard(place: Path) -> int:
    size = sum(path.stat().st_size for path in place.iterdir())
    shutil.rmtree(place, ignore_errors=True)
    return size
