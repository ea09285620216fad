"""A model as one GGUF file, which llama.cpp, ollama and their like run.

Matrices take the wanted type; what llama.cpp keeps in F32 whatever the type (positions, norms,
biases) stays in it. The head, which is the token embedding, keeps 8 bits where the others have 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import TokenizerError, UsageError, WeightsError
from gpt2cli.progress import Progress
from gpt2cli.text.vocabulary import END_OF_TEXT, Vocabulary
from gpt2cli.weights.gguf import names
from gpt2cli.weights.names import hub_name
from gpt2cli.weights.safetensors import StoredTensor, replacing

# What a file can be written in → GGML's name of its matrices' type.
PRECISIONS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
BLOCK = 32  # numbers that share a scale, in Q8_0 and Q4_0
_FILE_TYPES = {
    "fp32": "ALL_F32",
    "fp16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q4_0": "MOSTLY_Q4_0",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A model to be written: every check is done before anything is.

    Raises `UsageError` for a precision that the sizes do not allow, and `TokenizerError` for a
    vocabulary that llama.cpp cannot have.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    precision: str

    def __post_init__(self) -> None:
        names.package()
        if self.precision in ("q8_0", "q4_0") and self.config.emb_dim % BLOCK:
            raise UsageError(
                f"precision {self.precision} needs a width that divides by {BLOCK}, and this "
                f"model's is {self.config.emb_dim}; take fp32, fp16 or bf16",
                "precision",
            )
        if not self.vocabulary.is_gpt2s:
            raise TokenizerError(
                "this vocabulary cuts text otherwise than GPT-2, which GGUF has no words for"
            )
        if END_OF_TEXT not in self.vocabulary.added:
            raise TokenizerError(
                f"this vocabulary has no {END_OF_TEXT}, and llama.cpp would end texts at another "
                "token"
            )
        if self.vocabulary.opening not in ([], [self.end_of_text]):
            raise TokenizerError(
                "this vocabulary puts more before a text than one token, which GGUF cannot say"
            )

    @property
    def end_of_text(self) -> int:
        """The id of end-of-text."""
        found: int = self.vocabulary.added[END_OF_TEXT]["id"]
        return found

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(self.length(name, shape) for name, shape in self.shapes().items())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What is written, by our names; llama.cpp wants QKV biases also where there are none."""
        found, config = names.shapes(self.config), self.config
        for i in range(0 if config.qkv_bias else config.n_layers):
            found[f"blocks.{i}.attention.qkv.bias"] = (3 * config.emb_dim,)
        return found

    def kind(self, name: str, shape: tuple[int, ...]) -> Any:
        """The type of GGML's that one of our parameters gets."""
        if len(shape) < 2 or name.startswith("position_embedding."):
            found = "F32"
        elif self.precision == "q4_0" and name.startswith("token_embedding."):
            found = "Q8_0"
        else:
            found = PRECISIONS[self.precision]
        return names.package().GGMLQuantizationType[found]

    def length(self, name: str, shape: tuple[int, ...]) -> int:
        """The bytes of one of our parameters."""
        block, size = names.package().GGML_QUANT_SIZES[self.kind(name, shape)]
        return int(np.prod(shape)) // int(block) * int(size)


def write(
    plan: Plan,
    tensors: Mapping[str, StoredTensor],
    path: Path,
    name: str,
    progress: Progress | None = None,
) -> None:
    """Write a model's tensors, by our names, as a file that replaces one that is there.

    `name` is what the file says that the model is called. `progress` is called with the bytes
    written. Raises `WeightsError` for numbers that the precision cannot hold, and where writing
    fails.
    """
    gguf = names.package()
    shapes, done = plan.shapes(), 0
    with writing(path) as writer:
        _add_metadata(writer, plan, name)
        for ours, shape in shapes.items():
            kind, theirs = plan.kind(ours, shape), names.gguf_name(ours)
            stored = gguf.quants.quant_shape_to_byte_shape(shape, kind)
            size = plan.length(ours, shape)
            writer.add_tensor_info(theirs, stored, np.dtype(np.uint8), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours, shape in shapes.items():
            coded = _coded(ours, tensors.get(ours), shape, plan.kind(ours, shape))
            writer.write_tensor_data(coded)
            done += coded.nbytes
            if progress:
                progress(path.name, done, plan.bytes)


@contextmanager
def writing(path: Path) -> Iterator[Any]:
    """The package's writer of a file that appears when it is whole."""
    gguf = names.package()
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, names.ARCHITECTURE)
        try:
            yield writer
        finally:
            writer.close()


def _coded(name: str, tensor: StoredTensor | None, shape: tuple[int, ...], kind: Any) -> NDArray:
    """The bytes of a tensor; without one, of zeros."""
    if tensor is None:
        return np.zeros(4 * int(np.prod(shape)), np.uint8)
    numbers = tensor.to_numpy()
    if names.is_transposed(name, shape):
        numbers = numbers.T
    with np.errstate(over="ignore"):
        coded = names.package().quants.quantize(np.ascontiguousarray(numbers), kind)
    tensor.release()
    decoded = names.package().quants.dequantize(coded, kind)
    if not np.isfinite(decoded).all():
        raise WeightsError(
            f"{hub_name(name)} has numbers too large for {kind.name}, or none; nothing was written"
        )
    return np.ascontiguousarray(coded).reshape(-1).view(np.uint8)


def _add_metadata(writer: Any, plan: Plan, name: str) -> None:
    gguf, config = names.package(), plan.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.emb_dim)
    writer.add_feed_forward_length(4 * config.emb_dim)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[plan.precision]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model(names.TOKENIZER)
    writer.add_tokenizer_pre(names.PRE_TOKENIZER)
    texts, kinds = _tokens(plan)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(plan.vocabulary.merges)
    writer.add_bos_token_id(plan.end_of_text)
    writer.add_eos_token_id(plan.end_of_text)
    writer.add_add_bos_token(bool(plan.vocabulary.opening))


def _tokens(plan: Plan) -> tuple[list[str], list[int]]:
    """A text for every row of the embedding, and what kind of token that is."""
    kinds = names.package().TokenType
    size = plan.config.vocab_size
    texts = [f"[PAD{i}]" for i in range(size)]  # as llama.cpp's own converter fills up
    types = [int(kinds.UNUSED)] * size
    for text, i in plan.vocabulary.tokens.items():
        texts[i], types[i] = text, int(kinds.NORMAL)
    for text, entry in plan.vocabulary.added.items():
        control = entry["special"] or text == END_OF_TEXT
        texts[entry["id"]] = text
        types[entry["id"]] = int(kinds.CONTROL if control else kinds.USER_DEFINED)
    return texts, types
