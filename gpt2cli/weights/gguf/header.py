"""The head of a GGUF file: metadata, and where its tensors are.

Layout (github.com/ggml-org/ggml/blob/master/docs/gguf.md): magic, version, two counts, pairs of
metadata, a record per tensor, then the data. The file is a stranger's: the `gguf` package's own
reader believes its counts, and loops over numbers of 64 bits; here nothing is read or allocated
that the file cannot hold.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.errors import WeightsError, shown

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LARGEST = 2**26  # bytes of the head; GPT-2's vocabulary takes 2 MB
_MOST_AXES = 4
_ALIGNMENT = 32  # bytes, unless the metadata says otherwise
# GGUF's types of values → NumPy's, of the same size in the file.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` in NumPy's order, `kind` as GGML numbers its types, `begin` in bytes."""

    shape: tuple[int, ...]
    kind: int
    begin: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key (arrays of numbers as NumPy's), tensors by name, and the file's size."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    size: int


def read(path: Path) -> Header:
    """Read the head of a file. Raises `WeightsError` if it is damaged, or not GGUF."""
    try:
        with path.open("rb") as file:
            return _parse(path, _Fields(file))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise WeightsError(f"{path} is damaged: a text in its metadata is not UTF-8") from None
    except ValueError as error:
        raise WeightsError(f"{path} {error}") from None


class _Fields:
    """The values of a file, one after the other. Raises `ValueError` where there are no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self.position = file.seek(0)

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > self.size:
            raise ValueError("is damaged or incomplete: it ends within its metadata")
        if end > _LARGEST:
            raise ValueError(f"is damaged: its metadata are larger than {_LARGEST:,} bytes")
        self.position = end
        return self._file.read(count)

    def u32(self) -> int:
        return int(struct.unpack("<I", self.bytes(4))[0])

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.bytes(8))[0])

    def text(self) -> str:
        return self.bytes(self.u64()).decode("utf-8")

    def value(self, kind: int) -> Any:
        """One value of metadata."""
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            kind, count = self.u32(), self.u64()
            # An empty text takes eight bytes: the loop ends with the file.
            return (
                [self.text() for _ in range(count)] if kind == _TEXT else self._array(kind, count)
            )
        return self._array(kind, 1)[0].item()

    def _array(self, kind: int, count: int) -> NDArray:
        if kind not in _NUMBERS:
            raise ValueError(f"is damaged: its metadata have a value of the unknown type {kind}")
        dtype = np.dtype(_NUMBERS[kind])
        return np.frombuffer(self.bytes(count * dtype.itemsize), dtype)


def _parse(path: Path, fields: _Fields) -> Header:
    if fields.size < 4 or fields.bytes(4) != MAGIC:
        raise ValueError("is no GGUF file")
    if (version := fields.u32()) not in _VERSIONS:
        raise ValueError(
            f"is a GGUF file of version {version}; gpt2cli reads versions 2 and 3, little-endian"
        )
    tensor_count, value_count = fields.u64(), fields.u64()
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = fields.text()
        if key in metadata:
            raise ValueError(f"is damaged: {shown(key)} is twice in its metadata")
        metadata[key] = fields.value(fields.u32())
    records: dict[str, TensorInfo] = {}
    for _ in range(tensor_count):
        name = fields.text()
        if name in records:
            raise ValueError(f"is damaged: {shown(name)} is there twice")
        records[name] = _record(name, fields)
    start = _aligned(fields.position, metadata.get("general.alignment", _ALIGNMENT))
    tensors = {n: TensorInfo(t.shape, t.kind, start + t.begin) for n, t in records.items()}
    return Header(path, metadata, tensors, fields.size)


def _record(name: str, fields: _Fields) -> TensorInfo:
    if not 0 < (axes := fields.u32()) <= _MOST_AXES:
        raise ValueError(f"is damaged: {shown(name)} has {axes} axes")
    shape = tuple(fields.u64() for _ in range(axes))[::-1]
    return TensorInfo(shape, fields.u32(), fields.u64())


def _aligned(position: int, alignment: Any) -> int:
    """Where the data begin."""
    if type(alignment) is not int or not 0 < alignment <= _LARGEST:
        raise ValueError(f"is damaged: its alignment is {shown(alignment)}")
    return -(-position // alignment) * alignment
