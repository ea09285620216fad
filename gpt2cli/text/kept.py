"""A vocabulary as it was read and checked once, kept on this disk for the next time.

To parse fifty thousand tokens takes longer than to generate one. The file is a safetensors file
of arrays in the folder of `folders.assets`, named by a hash of all that the files of the
vocabulary hold: checkpoints with the same vocabulary share it, and it is never out of date.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from dataclasses import dataclass
from pathlib import Path

from gpt2cli import folders
from gpt2cli.files import atomic
from gpt2cli.text import vocabulary
from gpt2cli.text.table import TokenTable

LAYOUT = 1  # to be raised when other vocabularies are accepted, or the file changes
LEAST = 1 << 18  # bytes of a vocabulary's files; less is parsed as soon as found


@dataclass(frozen=True)
class Kept:
    """What encoding and decoding needs of a vocabulary that cuts text as GPT-2 does."""

    table: TokenTable
    special: dict[str, int]
    opening: list[int]


def identity(directory: Path) -> str | None:
    """A hash of a directory's vocabulary; None if there is none, or too little to keep."""
    digest = hashlib.sha256(f"{LAYOUT} {sys.byteorder}\n".encode())
    try:
        files = vocabulary.files(directory)
        if sum(path.stat().st_size for path in files) < LEAST:
            return None
        for path in files:
            data = path.read_bytes()
            digest.update(f"{path.name} {len(data)}\n".encode())
            digest.update(data)
    except OSError:
        return None
    return digest.hexdigest()


def find(known: str) -> Kept | None:
    """The vocabulary of an `identity`; None if it was not kept, or the file is damaged."""
    path = _path(known)
    try:
        if not path.is_file():  # to open a FIFO would wait for who writes into it
            return None
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8:start])["__metadata__"]
        about, parts = json.loads(metadata["about"]), data[start:]
        good = metadata["identity"], metadata["checksum"]
        if good != (known, _checksum(metadata["about"], parts)):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    text, count = about["text"], about["tokens"]
    numbers = array("I", parts[text:])
    ends, ids, places = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
    return Kept(TokenTable(parts[:text], ends, ids, places), about["special"], about["opening"])


def keep(known: str, kept: Kept, directory: Path) -> None:
    """Keep the vocabulary of a directory. A disk that is full or read-only costs only time."""
    text, *numbers = kept.table.parts
    text += b" " * (-len(text) % 4)  # so that the numbers are aligned
    about = {"text": len(text), "tokens": len(kept.table)}
    described = json.dumps(about | {"special": kept.special, "opening": kept.opening})
    parts = text + b"".join(array("I", part).tobytes() for part in numbers)
    metadata = {
        "vocabulary": os.fspath(vocabulary.files(directory)[0].resolve()),
        "identity": known,
        "about": described,
        "checksum": _checksum(described, parts),
    }
    size = len(parts)
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "vocabulary": tensor}).encode()
    header += b" " * (-len(header) % 8)
    path = _path(known)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            temporary.write_bytes(len(header).to_bytes(8, "little") + header + parts)
    except OSError:
        pass


def _path(known: str) -> Path:
    return folders.assets() / f"{known[:16]}-vocabulary.safetensors"


def _checksum(about: str, parts: bytes) -> str:
    return hashlib.sha256(about.encode() + parts).hexdigest()
