"""safetensors files: memory-mapped when read, replaced whole when written."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gpt2cli.arrays import NDArray, are_numbers
from gpt2cli.errors import WeightsError

if TYPE_CHECKING:
    import torch

from gpt2cli.files import atomic
from gpt2cli.progress import Progress
from gpt2cli.weights.mapping import open_mapped

# safetensors' type names → the NumPy type of their bits, and torch's name. NumPy has no bfloat16.
_DTYPES = {
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "F64": ("<f8", "float64"),
}
INTEGERS = {"U16": ("<u2", "uint16"), "U32": ("<u4", "uint32"), "I64": ("<i8", "int64")}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a memory-mapped file: nothing is read before it is used.

    `bits` has the tensor's shape, and uint16 elements for bfloat16.
    """

    bits: NDArray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.bits.shape)

    def to_numpy(self) -> NDArray:
        """In fp32; a view of the file if that is how it is stored."""
        if self.dtype == "bfloat16":  # the upper half of a float32
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        return self.bits.astype(np.float32, copy=False)

    def in_type(self, dtype: str, name: str) -> NDArray:
        """Its bits in another type, by PyTorch's name. Raises `WeightsError` if that is too small.

        `name` is what the message calls it.
        """
        numbers = np.ascontiguousarray(self.to_numpy())
        if dtype == "bfloat16":
            wide = numbers.view(np.uint32)
            bits = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)  # to nearest even
        else:
            with np.errstate(over="ignore"):
                bits = numbers.astype(dtype, copy=False)
        if not are_numbers(StoredTensor(bits, dtype).to_numpy()):
            raise WeightsError(
                f"{name} has numbers too large for {dtype}, or none; choose another precision"
            )
        return bits

    def release(self) -> None:
        """Release the memory of pages that were read; they can be read again from the file."""
        mapped: Any = self.bits
        while isinstance(mapped, np.ndarray | memoryview):
            mapped = mapped.base if isinstance(mapped, np.ndarray) else mapped.obj
        if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
            return
        first = self.bits.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        begin = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (first + self.bits.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def to_torch(self, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
        """On a device and in a precision; a view of the file if it is stored like that."""
        import torch

        tensor = torch.from_numpy(self.bits).view(getattr(torch, self.dtype))
        return tensor.to(device=device, dtype=dtype)


def read_mapped(
    path: Path,
    ignored: tuple[str, ...] = (),
    dtypes: Mapping[str, tuple[str, str]] = _DTYPES,
) -> dict[str, StoredTensor]:
    """Memory-map one safetensors file, without the tensors whose names end with `ignored`.

    Raises `WeightsError` if it is damaged, or has tensors of other types than `dtypes`.

    Its layout (github.com/huggingface/safetensors): 8 bytes of header length, the header in
    JSON, the data. The library checks it; its own tensors would be copies in NumPy.
    """
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from None
    # Copy on write: torch wants writable memory, and the file must never change.
    data: NDArray = np.frombuffer(open_mapped(path), dtype=np.uint8)
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    return {
        key: _stored(data[start:], entry, f"{path}: {key}", dtypes)
        for key, entry in header.items()
        if not key.endswith(ignored)
    }


def _stored(
    data: NDArray, entry: dict[str, Any], where: str, dtypes: Mapping[str, tuple[str, str]]
) -> StoredTensor:
    if entry["dtype"] not in dtypes:
        kind = "floating point" if dtypes is _DTYPES else "integer"
        raise WeightsError(f"{where} is stored as {entry['dtype']}, which is no {kind}")
    numpy_type, torch_name = dtypes[entry["dtype"]]
    begin, end = entry["data_offsets"]
    return StoredTensor(data[begin:end].view(numpy_type).reshape(entry["shape"]), torch_name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """`atomic` for the files of a checkpoint. Raises `WeightsError` where writing fails."""
    try:
        with atomic(path) as temporary:
            yield temporary
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"cannot write {path} ({reason}); what was there is kept") from None


def write_text(text: str, path: Path) -> None:
    """Write one text file, atomically. Raises `WeightsError` where that fails."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_safetensors(
    tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write one safetensors file, atomically. Raises `WeightsError` where that fails."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def write_arrays(arrays: Mapping[str, NDArray], path: Path, metadata: dict[str, str]) -> None:
    """The same for NumPy's arrays."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata)


def write_streamed(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    arrays: Iterable[NDArray],
    path: Path,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """The same for bits that come one at a time; `kinds` are their types and shapes.

    Types have PyTorch's names. `progress` is called with the bytes written.
    """
    names = {torch_name: name for name, (_, torch_name) in _DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in kinds.items():
        size = math.prod(shape) * np.dtype(_DTYPES[names[dtype]][0]).itemsize
        begin, end = end, end + size
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in arrays:
            file.write(np.ascontiguousarray(bits).data)
            if progress:
                progress(path.name, file.tell() - len(text) - 8, end)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in a safetensors file's header. Raises `WeightsError` if it is damaged."""
    try:
        with safe_open(path, framework="np") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from None


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of one file and its metadata. Raises `WeightsError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from None
