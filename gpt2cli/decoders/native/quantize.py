"""Matrices in fewer bits for the native engine: coded once, kept on this disk, mapped from there.

The file is a safetensors file of bytes, in the folder that huggingface_hub sets aside for what
programs derive from models. It is found by where the checkpoint lies, and belongs to it as long
as `identity`, of all its weight files, is the same; its header is predictable down to the
checksum, so that a file is good exactly when its first bytes are those expected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from gpt2cli import folders
from gpt2cli.arrays import NDArray, are_numbers
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native import abi
from gpt2cli.errors import WeightsError
from gpt2cli.files import atomic, discard_leftovers, fingerprint
from gpt2cli.progress import Progress
from gpt2cli.system.precision import HALVES, PRECISIONS, torch_name
from gpt2cli.threads import thread_count
from gpt2cli.weights import checkpoint
from gpt2cli.weights.mapping import bring_in
from gpt2cli.weights.names import hub_name, parameter_shapes
from gpt2cli.weights.safetensors import StoredTensor

if TYPE_CHECKING:
    from gpt2cli.weights.merging import Chosen

# The token embedding, (V, C), which is the head too: used backwards, where all else is (in, out).
HEAD = "token_embedding.weight"
LAYOUT = 3  # to be raised with every change to the layout in quantize.h
ALIGNMENT = 64  # a cache line
UNKNOWN = "0" * 64  # as long as a checksum
SECTOR = 512  # bytes; disks lose and exchange no less


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """What is coded: the head and the matrices of all blocks, as (in, out)."""
    found = {HEAD: (config.emb_dim, config.vocab_size)}
    for name, shape in parameter_shapes(config).items():
        if name.startswith("blocks.") and len(shape) == 2:
            found[name] = (shape[0], shape[1])
    return found


def stored_as(
    config: ModelConfig, tensors: Mapping[str, StoredTensor], precision: str
) -> dict[str, NDArray] | None:
    """The matrices as they lie in their file, if it has them in this half precision; else None."""
    names = shapes(config)
    dtypes = {tensors[name].dtype for name in names}
    if precision not in HALVES or dtypes != {torch_name(precision)}:
        return None
    return {name: tensors[name].bits for name in names}


def encode(
    config: ModelConfig, weights: Mapping[str, NDArray], precision: str
) -> dict[str, NDArray]:
    """Code fp32 arrays in memory: a row of bytes for each matrix.

    Raises `WeightsError` for NaN or infinity in any parameter, those that stay in fp32 too:
    products of bytes would hide them.
    """
    _check_vectors(config, weights.__getitem__)
    return {
        name: _encode(name, weights[name], shape, precision)
        for name, shape in shapes(config).items()
    }


def identity(directory: Path, adapters: Sequence[Chosen] = ()) -> dict[str, str]:
    """Which weights a checkpoint holds: where the first file is, and a hash that tells them apart.

    With `adapters` they are those of the merged model. The hash covers size, time and some pages
    of every file. To be taken before any tensor is read, so that weights which are replaced
    meanwhile are noticed.
    """
    files = [path.resolve() for path in checkpoint.weight_files(directory)]
    parts = [path.resolve() for chosen in adapters for path in chosen.files]
    weights = "".join(f"{chosen.weight}\n" for chosen in adapters)
    digest = hashlib.sha256(f"{weights}{fingerprint(files + parts)}".encode())
    found = {"weights": str(files[0]), "identity": digest.hexdigest()}
    return {**found, "adapters": json.dumps([str(path) for path in parts])} if parts else found


def open_coded(
    directory: Path,
    known: Mapping[str, str],
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    precision: str,
    progress: Progress | None = None,
    adapters: Sequence[Chosen] = (),
) -> dict[str, NDArray]:
    """The same of a checkpoint, from the file of an earlier run if that is still good.

    `known` is the `identity` of what `tensors` are from. `progress` is told of the bytes
    written. A disk that is full or read-only costs only time. Raises `WeightsError` for
    NaN or infinity in the weights.
    """
    sizes = _sizes(config, precision)
    path = cache_path(directory, precision, adapters)
    if (coded := _read(path, known, sizes)) is not None and identity(directory, adapters) == known:
        return coded
    pieces = _encode_all(config, tensors, precision, sum(sizes.values()), progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary:
            with temporary.open("wb") as file:
                _write(file, known, sizes, pieces)
            if identity(directory, adapters) != known:
                raise OSError("the weights were replaced while they were quantized")
        if (coded := _read(path, known, sizes)) is not None:
            return coded
    except OSError:
        pass
    return dict(_encode_all(config, tensors, precision, sum(sizes.values()), progress))


def are_kept(directory: Path, precision: str, adapters: Sequence[Chosen] = ()) -> bool:
    """Whether the next run will find the codes of a checkpoint, with adapters merged in."""
    config, tensors = checkpoint.read(directory)
    if not adapters and stored_as(config, tensors, precision) is not None:
        return True
    sizes = _sizes(config, precision)
    path = cache_path(directory, precision, adapters)
    return _read(path, identity(directory, adapters), sizes) is not None


def cache_path(directory: Path, precision: str, adapters: Sequence[Chosen] = ()) -> Path:
    """Where the codes of a checkpoint, with adapters merged in, are kept."""
    # Revisions may share some files of weights.
    weights = [os.fsencode(path.resolve()) for path in checkpoint.weight_files(directory)]
    for chosen in adapters:
        weights += [os.fsencode(chosen.directory.resolve()), repr(chosen.weight).encode()]
    name = hashlib.sha256(b"\0".join(weights)).hexdigest()[:16]
    return folders.assets() / f"{name}-{precision}.safetensors"


def prune() -> int:
    """Delete what was kept of checkpoints and adapters that are gone; returns the bytes freed.

    That is their codes, and their vocabularies (`text.kept`).
    """
    freed = discard_leftovers(folders.assets())
    for path in folders.assets().glob("*.safetensors"):
        if not path.is_file():  # to open a FIFO would wait for who writes into it
            continue
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            known = header["__metadata__"]
            files = [
                known.get("weights") or known["vocabulary"],
                *json.loads(known.get("adapters", "[]")),
            ]
            if not all(Path(file).exists() for file in files):
                freed += path.stat().st_size
                path.unlink()
        except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
            continue
    return freed


def _encode_all(
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    precision: str,
    total: int,
    progress: Progress | None,
) -> Iterator[tuple[str, NDArray]]:
    """One matrix after the other, so that little of a large model is in memory at a time."""
    _check_vectors(config, lambda name: tensors[name].to_numpy())
    done = 0
    for name, shape in shapes(config).items():
        codes = _encode(name, tensors[name].to_numpy(), shape, precision)
        tensors[name].release()
        yield name, codes
        done += codes.nbytes
        if progress:
            progress(f"weights in {precision}", done, total)


def _encode(name: str, weight: NDArray, shape: tuple[int, int], precision: str) -> NDArray:
    """One fp32 matrix as codes, by all threads; in half precision as NumPy rounds it."""
    library = native.library()
    weight = np.ascontiguousarray(weight, dtype=np.float32)
    _check_numbers(name, weight)
    if precision in HALVES:
        bits = StoredTensor(weight, "float32").in_type(torch_name(precision), hub_name(name))
        return bits.reshape(-1).view(np.uint8)
    codes = _aligned(_bytes(name, shape, precision))
    inputs, outputs = shape
    transposed = name == HEAD
    job = abi.EncodeJob(
        weights=weight.ctypes.data,
        input_stride=1 if transposed else outputs,
        output_stride=inputs if transposed else 1,
        inputs=inputs,
        outputs=outputs,
        bits=_bits(name, precision),
        codes=codes.ctypes.data,
    )
    threads = thread_count()

    def encode_range(thread: int) -> None:
        library.engine_encode(job, threads, thread)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(encode_range, range(threads)))
    return codes


def _aligned(size: int) -> NDArray:
    """Zero bytes that begin a cache line."""
    memory = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


def _check_vectors(config: ModelConfig, weight: Callable[[str], NDArray]) -> None:
    """Check all parameters that are not coded."""
    coded = shapes(config)
    for name in parameter_shapes(config):
        if name not in coded:
            _check_numbers(name, weight(name))


def _check_numbers(name: str, weight: NDArray) -> None:
    if not are_numbers(weight):
        raise WeightsError(
            f"{hub_name(name)} holds NaN or infinity: the weights are damaged; "
            "fetch or train the model again"
        )


def _bits(name: str, precision: str) -> int:
    """The head keeps 8 bits: it decides between words."""
    return 8 if name == HEAD else PRECISIONS[precision].bits


def _bytes(name: str, shape: tuple[int, int], precision: str) -> int:
    """Length of a matrix in the file, filled up so that the next begins a cache line."""
    inputs, outputs = shape
    if precision in HALVES:
        size = 2 * inputs * outputs
    else:
        size = native.library().engine_code_bytes(inputs, outputs, _bits(name, precision))
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sizes(config: ModelConfig, precision: str) -> dict[str, int]:
    """The bytes of each matrix."""
    return {name: _bytes(name, shape, precision) for name, shape in shapes(config).items()}


def _header(known: Mapping[str, str], sizes: Mapping[str, int], checksum: str) -> bytes:
    """The first bytes of a safetensors file that holds the codes of these weights."""
    metadata = {**known, "layout": str(LAYOUT), "checksum": checksum}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, size in sizes.items():
        begin, end = end, end + size
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _checksum(pieces: Iterable[NDArray]) -> str:
    """A hash of what the 64-bit words of each sector sum up to: as fast as memory is read."""
    digest = hashlib.sha256()
    for codes in pieces:
        words, length = codes.view(np.uint64), SECTOR // 8
        whole = len(words) // length * length
        # NumPy has slower ways to sum, such as add.reduceat.
        digest.update(np.einsum("ij->i", words[:whole].reshape(-1, length)).data)
        if whole < len(words):
            digest.update(words[whole:].sum().data)
    return digest.hexdigest()


def _write(
    file: BinaryIO,
    known: Mapping[str, str],
    sizes: Mapping[str, int],
    pieces: Iterator[tuple[str, NDArray]],
) -> None:
    def written() -> Iterator[NDArray]:
        for _, codes in pieces:
            file.write(codes.data)
            yield codes

    file.write(_header(known, sizes, UNKNOWN))
    checksum = _checksum(written())
    file.seek(0)
    file.write(_header(known, sizes, checksum))


def _read(
    path: Path, known: Mapping[str, str], sizes: Mapping[str, int]
) -> dict[str, NDArray] | None:
    """The codes in a file, or None if it is not there, of other weights, or damaged."""
    start = len(_header(known, sizes, UNKNOWN))
    try:
        if not path.is_file():  # to open a FIFO would wait for who writes into it
            return None
        data: NDArray = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError):  # ValueError: it is empty
        return None
    if len(data) != start + sum(sizes.values()):
        return None
    bring_in(data, data.ctypes.data, len(data))
    ends = np.cumsum(list(sizes.values())) + start
    coded = {
        name: data[end - size : end] for (name, size), end in zip(sizes.items(), ends, strict=True)
    }
    good = data[:start].tobytes() == _header(known, sizes, _checksum(coded.values()))
    return coded if good else None
