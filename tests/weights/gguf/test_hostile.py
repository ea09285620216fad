"""GGUF files that lie: each is one sentence, at no cost beyond the size of the file."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import ggufs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.errors import GPT2CLIError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights.gguf import header, imported
from gpt2cli.weights.gguf import model as gguf_model
from gpt2cli.weights.names import parameter_shapes

HUGE = 2**63 + 1
TEXT_TYPE, ARRAY_TYPE, U8, U32 = 8, 9, 0, 4


@pytest.fixture(scope="module")
def valid(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ggufs.write(tiny_directory, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "fp16")


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted files are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@contextmanager
def little_memory(limit: int = 30_000_000) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def text(value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def head(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def array(kind: int, count: int) -> bytes:
    return head(0, 1) + text("key") + struct.pack("<IIQ", ARRAY_TYPE, kind, count)


def tensor(name: str, axes: int, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name) + struct.pack(f"<I{len(dims)}Q", axes, *dims) + struct.pack("<IQ", kind, offset)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no GGUF file"),
        (b"GGU", "is no GGUF file"),
        (b"PK\x03\x04" + bytes(40), "is no GGUF file"),
        (b"GGUF", "ends within its metadata"),
        (head(version=1), "of version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
        (head(HUGE, 0), "ends within its metadata"),
        (head(0, HUGE), "ends within its metadata"),
        (head(0, 1) + struct.pack("<Q", HUGE) + b"key", "ends within its metadata"),
        (array(U8, HUGE), "ends within its metadata"),
        (array(U32, 2**40), "ends within its metadata"),
        (array(TEXT_TYPE, HUGE), "ends within its metadata"),
        (array(ARRAY_TYPE, 1), "a value of the unknown type 9"),
        (array(77, 1), "a value of the unknown type 77"),
        (head(0, 1) + text("key") + struct.pack("<I", 13), "a value of the unknown type 13"),
        (head(0, 1) + text(b"\xff") + struct.pack("<IB", U8, 1), "not UTF-8"),
        (head(0, 2) + (text("a") + struct.pack("<IB", U8, 1)) * 2, "'a' is twice"),
        (head(2) + tensor("t", 1, (8,)) * 2, "'t' is there twice"),
        (head(1) + tensor("t", 0, ()), "has 0 axes"),
        (head(1) + tensor("t", 2**31, (1, 1)), "axes"),
        (
            head(0, 1) + text("general.alignment") + struct.pack("<II", U32, 0),
            "its alignment is 0",
        ),
    ],
)
def test_a_head_that_lies_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with little_memory(), pytest.raises(GPT2CLIError, match=message) as caught:
        header.read(path)
    assert str(path) in str(caught.value)


def test_metadata_beyond_all_measure_are_not_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte, full of empty texts."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(array(U8, 2**40 - 100))
        file.truncate(2**40)
    with little_memory(), pytest.raises(GPT2CLIError, match="its metadata are larger than"):
        header.read(path)


def rewritten(valid: Path, out: Path, **change: Any) -> Path:
    """A copy with other metadata (None drops) and other tensors, by the package's own writer.

    Keys have "__" for dots; a tensor is an array, or an array of bytes and a type.
    """
    given = {key.replace("__", "."): value for key, value in change.items()}
    reader = gguf.GGUFReader(valid)
    writer = gguf.GGUFWriter(out, given.pop("general.architecture", "gpt2"))
    for key, field in reader.fields.items():
        value = given.pop(key, field.contents())
        if value is not None and not key.startswith("GGUF.") and key != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, value, *_kind(value, field.types[0], sub))
    for found in reader.tensors:
        new = given.pop(found.name, found.data)
        if new is not None:
            data, kind = new if isinstance(new, tuple) else (new, None)
            writer.add_tensor(found.name, data, raw_dtype=kind)
    for key, value in given.items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(key, value)
        else:
            writer.add_key_value(key, value, *_kind(value, gguf.GGUFValueType.UINT32, None))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _kind(value: Any, kind: Any, sub: Any) -> tuple[Any, Any]:
    """The type of a value and of its elements, where they are others than before."""
    if isinstance(value, str):
        return gguf.GGUFValueType.STRING, None
    if isinstance(value, list) and sub is None:
        return gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32
    return (gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else kind), sub


ZEROS = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general__architecture": "llama"}, "its architecture is 'llama'"),
        ({"general__type": "adapter"}, "holds no model: it is of type 'adapter'"),
        ({"split__count": 3}, "is a part of a model"),
        ({"gpt2__block_count": None}, "missing n_layers"),
        ({"gpt2__block_count": 2**31}, "n_layers must be at most 10,000"),
        ({"gpt2__block_count": 9999}, "does not hold this GPT-2: 28 tensors instead of"),
        ({"gpt2__block_count": 3}, r"missing blk\.2\.attn_norm\.weight"),
        ({"gpt2__block_count": "two"}, "n_layers must be a whole number, not 'two'"),
        ({"gpt2__embedding_length": 23}, "emb_dim must be a multiple of n_heads"),
        (
            {"gpt2__embedding_length": 48, "gpt2__feed_forward_length": None},
            r"is \(300, 24\) instead of \(300, 48\)",
        ),
        ({"gpt2__embedding_length": [24, 24]}, "emb_dim must be a whole number"),
        ({"general__type": [1, 2]}, "holds no model"),
        ({"split__count": [1, 2]}, "is a part of a model"),
        ({"tokenizer__ggml__pre": [1, 2]}, "its tokenizer.ggml.pre is"),
        ({"gpt2__context_length": 0}, "context_length must be at least 1"),
        ({"gpt2__context_length": 99}, r"is \(32, 24\) instead of \(99, 24\)"),
        ({"gpt2__feed_forward_length": 100}, "feed_forward_length is 100"),
        ({"gpt2__attention__layer_norm_epsilon": float("nan")}, "layer_norm_eps must be above 0"),
        ({"token_embd__weight": None}, "it has no token_embd.weight"),
        ({"token_embd__weight": np.zeros(9, np.float32)}, "one that is no matrix"),
        ({"blk__1__ffn_up__bias": None}, r"missing blk\.1\.ffn_up\.bias"),
        ({"blk__1__attn_qkv__bias": None}, r"missing blk\.1\.attn_qkv\.bias"),
        ({"blk__9__ffn_up__bias": ZEROS}, r"unexpected blk\.9\.ffn_up\.bias"),
        ({"output__weight": ZEROS}, r"output\.weight has the shape \(2, 2\)"),
        ({"output__weight": np.ones((300, 24), np.float32)}, "has a head of its own"),
        ({"output_norm__bias": np.zeros(24, np.int32)}, "of type I32, which cannot be decoded"),
        ({"tokenizer__ggml__tokens": None}, r"has no vocabulary: it lacks tokenizer\.ggml\.tokens"),
        ({"tokenizer__ggml__merges": None}, "has no vocabulary"),
        ({"tokenizer__ggml__merges": ["a b", "c\nd e"]}, "a merge has a line break"),
        ({"tokenizer__ggml__tokens": ["a"] * 300}, "has the token 'a' twice"),
        ({"tokenizer__ggml__tokens": ["a"]}, "its tokens and their types do not match"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "its tokens and their types do not match"),
        ({"tokenizer__ggml__model": "llama"}, "its tokenizer.ggml.model is 'llama'"),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "its tokenizer.ggml.pre is 'llama-bpe'"),
    ],
)
def test_what_is_no_whole_gpt2_is_one_sentence(
    valid: Path, tmp_path: Path, assets: Path, change: dict[str, Any], message: str
) -> None:
    path = rewritten(valid, tmp_path / "model.gguf", **change)
    with pytest.raises(GPT2CLIError, match=message):
        imported.convert(path)
    assert not list(assets.rglob("model.safetensors"))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_one_sentence(
    valid: Path, tmp_path: Path, assets: Path, kept: float
) -> None:
    data = valid.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(GPT2CLIError, match="damaged or incomplete"):
        imported.convert(path)
    assert not list(assets.rglob("model.safetensors"))


def test_tensors_that_share_their_bytes_do_not_multiply_them(
    valid: Path, tmp_path: Path, assets: Path
) -> None:
    """Else a small file with many layers would fill the disk."""
    data = bytearray(valid.read_bytes())
    for name in header.read(valid).tensors:
        at = data.index(text(name)) + len(text(name))
        (axes,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<Q", data, at + 4 + 8 * axes + 4, 0)  # all offsets are the first
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: header.read(valid).tensors["position_embd.weight"].begin + 5000])
    with pytest.raises(GPT2CLIError, match="damaged"):
        imported.convert(path)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_changed_bytes_are_a_model_or_one_sentence(
    valid: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    original = valid.read_bytes()
    metadata = header.read(valid).tensors["token_embd.weight"].begin
    changed = bytearray(original)
    # Most of the file is weights, in which nothing can be wrong; what lies is before them.
    for at in data.draw(st.lists(st.integers(0, metadata - 1), min_size=1, max_size=4)):
        changed[at] = data.draw(st.sampled_from([0, 1, 2, 8, 9, 0x7F, 0x80, 0xFF]))
    path = tmp_path_factory.mktemp("changed") / "model.gguf"
    path.write_bytes(changed)
    message = problem(path)
    shutil.rmtree(path.parent)
    assert "\n" not in message
    assert len(message) < 1000 + len(str(path))


def problem(path: Path) -> str:
    """What is wrong with a file; nothing if all of it can be read."""
    try:
        with little_memory():
            model = gguf_model.read(path)
            for name, content in model.vocabulary_files().items():
                (path.parent / name).write_text(content, encoding="utf-8")
            Tokenizer.load(path.parent)
            shapes = parameter_shapes(model.config)
            assert {name: tensor.shape for name, tensor in model.tensors()} == shapes
    except GPT2CLIError as error:
        return str(error)
    return ""
