"""What a GGUF file says of a GPT-2: its architecture, its tensors and its vocabulary."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.fields import build
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import ConfigError, WeightsError, shown
from gpt2cli.text.vocabulary import ADDED, END_OF_TEXT, of_gpt2
from gpt2cli.weights import checkpoint
from gpt2cli.weights.gguf import header as head
from gpt2cli.weights.gguf import names
from gpt2cli.weights.gguf.header import Header, TensorInfo
from gpt2cli.weights.safetensors import StoredTensor

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_F32, _F16, _BF16 = 0, 1, 30  # GGML's numbers of the types that are kept as they are
_KEPT = {_F32: ("<f4", "float32"), _F16: ("<f2", "float16"), _BF16: ("<u2", "bfloat16")}
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # kinds of tokens
_CLOSE = 0.25  # of a tensor's norm: farther apart are no two roundings of it, not even to 2 bits
_SETTINGS = ADDED[1]
# Ours → GGUF's key of the metadata.
_KEYS = {
    "context_length": "gpt2.context_length",
    "emb_dim": "gpt2.embedding_length",
    "n_layers": "gpt2.block_count",
    "n_heads": "gpt2.attention.head_count",
    "layer_norm_eps": "gpt2.attention.layer_norm_epsilon",
}


@dataclass(frozen=True, slots=True)
class GGUFModel:
    """A GPT-2 in a file whose head has been read; `config` is its architecture."""

    header: Header
    config: ModelConfig

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    @property
    def bytes(self) -> int:
        """What all tensors take in the types of `dtypes`."""
        sizes = {torch_name: np.dtype(kind).itemsize for kind, torch_name in _KEPT.values()}
        shapes, dtypes = names.shapes(self.config), self.dtypes()
        return sum(math.prod(shape) * sizes[dtypes[name]] for name, shape in shapes.items())

    def dtypes(self) -> dict[str, str]:
        """PyTorch's name, by our names, of the type that keeps each tensor exactly."""
        kinds = {n: self._source(n).kind for n in names.shapes(self.config)}
        return {name: _KEPT.get(kind, _KEPT[_F32])[1] for name, kind in kinds.items()}

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every parameter by our names, in our shapes, one at a time.

        Raises `WeightsError` for types that cannot be decoded, data beyond the file's end, or a
        head that is not the token embedding.
        """
        _check_lengths(self.header, self.header.tensors.values())
        self._check_head()
        for name, shape in names.shapes(self.config).items():
            tensor = _read(self.header, self._source(name))
            if names.is_transposed(name, shape):
                tensor = StoredTensor(np.ascontiguousarray(tensor.bits.T), tensor.dtype)
            yield name, tensor

    def _source(self, name: str) -> TensorInfo:
        """The tensor of a parameter: the embedding is the head, which may be kept in more bits."""
        tensors = self.header.tensors
        theirs = names.gguf_name(name)
        if theirs == EMBEDDING and HEAD in tensors:
            return max(tensors[HEAD], tensors[EMBEDDING], key=lambda t: _length(self.header, t))
        return tensors[theirs]

    def _check_head(self) -> None:
        tensors = self.header.tensors
        if HEAD not in tensors:
            return
        a, b = (_read(self.header, tensors[name]).to_numpy() for name in (EMBEDDING, HEAD))
        if not np.linalg.norm(a - b) <= _CLOSE * np.linalg.norm(a):
            raise WeightsError(
                f"{self.path} has a head of its own: {HEAD} is not the token embedding, with "
                "which GPT-2 predicts"
            )

    def end_of_text(self) -> int:
        """The id of end-of-text; 0 if there is none."""
        tokens = self.header.metadata.get("tokenizer.ggml.tokens", [])
        return tokens.index(END_OF_TEXT) if END_OF_TEXT in tokens else 0

    def vocabulary_files(self) -> dict[str, str]:
        """The vocabulary as the files of a checkpoint, by name.

        Raises `WeightsError` if the file has none, or one that cuts text otherwise than GPT-2.
        """
        metadata = self.header.metadata
        tokens = _texts(self.header, "tokenizer.ggml.tokens")
        merges = _texts(self.header, "tokenizer.ggml.merges")
        self._check_tokenizer(len(tokens))
        kinds = metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), int))
        if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
            raise WeightsError(f"{self.path} is damaged: its tokens and their types do not match")
        ids: dict[str, int] = {}
        added: dict[str, dict[str, Any]] = {}
        for i, (text, kind) in enumerate(zip(tokens, kinds.tolist(), strict=True)):
            if kind in (_CONTROL, _USER_DEFINED) and text != END_OF_TEXT:
                added[str(i)] = {"content": text, "special": kind == _CONTROL}
            elif kind != _UNUSED and ids.setdefault(text, i) != i:
                raise WeightsError(f"{self.path} is damaged: it has the token {shown(text)} twice")
        if any("\n" in merge for merge in merges):
            raise WeightsError(f"{self.path} is damaged: a merge has a line break")
        settings: dict[str, Any] = {"added_tokens_decoder": added} if added else {}
        settings.update(self._opening(tokens))
        extra = {_SETTINGS: json.dumps(settings, ensure_ascii=False)} if settings else {}
        return of_gpt2(ids, merges).files() | extra

    def _check_tokenizer(self, size: int) -> None:
        metadata = self.header.metadata
        for key, allowed in (
            ("tokenizer.ggml.model", (names.TOKENIZER,)),
            ("tokenizer.ggml.pre", (names.PRE_TOKENIZER, "default")),
        ):
            if (found := _single(metadata.get(key, allowed[0]))) not in allowed:
                raise WeightsError(
                    f"{self.path} is not supported: its {key} is {shown(found)}, where GPT-2 has "
                    f"{allowed[0]!r}"
                )
        if size > self.config.vocab_size:
            raise WeightsError(
                f"{self.path} is damaged: it has {size:,} tokens and embeddings of "
                f"{self.config.vocab_size:,}"
            )

    def _opening(self, tokens: list[str]) -> dict[str, Any]:
        """What stands before every text, as `tokenizer_config.json` says it."""
        metadata = self.header.metadata
        settings: dict[str, Any] = {}
        if metadata.get("tokenizer.ggml.add_bos_token") is True:
            bos = metadata.get("tokenizer.ggml.bos_token_id")
            if type(bos) is not int or not 0 <= bos < len(tokens):
                raise WeightsError(
                    f"{self.path} is damaged: it begins texts with token {shown(bos)}"
                )
            settings |= {"add_bos_token": True, "bos_token": tokens[bos]}
        if metadata.get("tokenizer.ggml.add_eos_token") is True:
            settings["add_eos_token"] = True
        return settings


def read(path: Path) -> GGUFModel:
    """Read the head of a file and check that it is of a whole GPT-2.

    Raises `WeightsError` or `ConfigError` if it is damaged, or something else.
    """
    header = head.read(path)
    metadata, tensors = header.metadata, header.tensors
    if (kind := _single(metadata.get("general.type", "model"))) != "model":
        raise WeightsError(f"{path} holds no model: it is of type {shown(kind)}")
    if (kind := _single(metadata.get("general.architecture"))) != names.ARCHITECTURE:
        raise ConfigError(
            f"{path} is not a GPT-2 that gpt2cli can run: its architecture is {shown(kind)}"
        )
    if _single(metadata.get("split.count", 0)) not in (0, 1):
        raise WeightsError(f"{path} is a part of a model; join the parts with llama-gguf-split")
    config = _config(header)
    wanted = {names.gguf_name(n): shape for n, shape in names.shapes(config).items()}
    # A head is compared with the embedding when the weights are read, and zeros are left out.
    found = {
        name: tensor.shape
        for name, tensor in tensors.items()
        if name != HEAD and (config.qkv_bias or not name.endswith(names.QKV_BIAS))
    }
    checkpoint.check_shapes(wanted, found, path)
    if HEAD in tensors and tensors[HEAD].shape != wanted[EMBEDDING]:
        raise WeightsError(f"{path} is damaged: {HEAD} has the shape {tensors[HEAD].shape}")
    return GGUFModel(header, config)


def _config(header: Header) -> ModelConfig:
    """The architecture. Raises `ConfigError`."""
    metadata, where = header.metadata, str(header.path)
    values = {ours: metadata[key] for ours, key in _KEYS.items() if key in metadata}
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{where} is damaged: it has no {EMBEDDING}, or one that is no matrix")
    if isinstance(epsilon := values.get("layer_norm_eps"), float):
        values["layer_norm_eps"] = float(str(np.float32(epsilon)))  # 1e-05, not 9.99999974e-06
    values |= {"vocab_size": embedding.shape[0], "qkv_bias": _has_qkv_bias(header)}
    config = build(ModelConfig, values, where)
    inner = metadata.get("gpt2.feed_forward_length", 4 * config.emb_dim)
    if not np.array_equal(inner, 4 * config.emb_dim):
        raise ConfigError(f"{where}: feed_forward_length is {shown(inner)}; GPT-2 has 4 × n_embd")
    return config


def _has_qkv_bias(header: Header) -> bool:
    """Whether there are biases that are not all zero, as llama.cpp wants them in any case."""
    biases = [t for name, t in header.tensors.items() if name.endswith(names.QKV_BIAS)]
    _check_lengths(header, biases)
    return any(t.kind not in _KEPT or _read(header, t).bits.any() for t in biases)


def _single(value: Any) -> Any:
    """A value that can be compared: of an array, how it looks."""
    return shown(value) if isinstance(value, list | np.ndarray) else value


def _texts(header: Header, key: str) -> list[str]:
    """An array of texts in the metadata."""
    found = header.metadata.get(key)
    if not isinstance(found, list):
        raise WeightsError(f"{header.path} has no vocabulary: it lacks {key}")
    return found


def _check_lengths(header: Header, tensors: Iterable[TensorInfo]) -> None:
    """Raise `WeightsError` for tensors that the file has no room for, one beside the other."""
    if sum(_length(header, info) for info in tensors) > header.size:
        raise WeightsError(f"{header.path} is damaged: its tensors lie one on the other")


def _length(header: Header, info: TensorInfo) -> int:
    """The bytes of a tensor. Raises `WeightsError` if its type is unknown or the file shorter."""
    if info.kind in _KEPT:
        block, size = 1, np.dtype(_KEPT[info.kind][0]).itemsize
    else:
        known = names.package().GGML_QUANT_SIZES
        if info.kind not in known:
            raise WeightsError(
                f"{header.path} has a tensor of type {info.kind}, which the gguf package does not "
                "know; a newer one may"
            )
        block, size = known[info.kind]
    if info.shape[-1] % block:
        raise WeightsError(
            f"{header.path} is damaged: a tensor has rows of {info.shape[-1]:,}, in blocks of "
            f"{block}"
        )
    length = math.prod(info.shape) // block * size
    if info.begin + length > header.size:
        raise WeightsError(f"{header.path} is damaged or incomplete: it ends within its tensors")
    return length


def _read(header: Header, info: TensorInfo) -> StoredTensor:
    """One tensor, in the shape that it has there, decoded unless it is in floating point."""
    length = _length(header, info)
    try:
        with header.path.open("rb") as file:
            file.seek(info.begin)
            data = np.frombuffer(file.read(length), np.uint8)
    except OSError as error:
        raise WeightsError(f"cannot read {header.path}: {error.strerror}") from None
    if len(data) != length:
        raise WeightsError(f"{header.path} became shorter while it was read")
    if info.kind in _KEPT:
        numpy_type, torch_name = _KEPT[info.kind]
        return StoredTensor(data.view(numpy_type).reshape(info.shape), torch_name)
    return StoredTensor(_decoded(header, info, data).reshape(info.shape), "float32")


def _decoded(header: Header, info: TensorInfo, data: NDArray) -> NDArray:
    gguf = names.package()
    kind = gguf.GGMLQuantizationType(info.kind)
    rows = data.reshape(math.prod(info.shape[:-1]), -1)
    try:
        with np.errstate(all="ignore"):  # damaged scales; the decoders look for NaN
            decoded: NDArray = gguf.quants.dequantize(rows, kind)
    except NotImplementedError:
        raise WeightsError(
            f"{header.path} has tensors of type {kind.name}, which cannot be decoded"
        ) from None
    return decoded.astype(np.float32, copy=False)
