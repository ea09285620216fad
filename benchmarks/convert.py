"""The checkpoint of the comparison in the formats of CTranslate2 and llama.cpp.

    python benchmarks/convert.py DIRECTORY PROGRAM

peers.py runs it in a process of its own, so that no memory of it stays.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from programs import CHECKPOINT, THREADS, quiet

from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.weights import checkpoint

# Ours → GGUF's. Matrices are (out, in) there, and (in, out) here.
GGUF_NAMES = (
    ("token_embedding.", "token_embd."),
    ("position_embedding.", "position_embd."),
    ("final_norm.", "output_norm."),
    ("blocks.", "blk."),
    ("norm1.", "attn_norm."),
    ("norm2.", "ffn_norm."),
    ("attention.qkv.", "attn_qkv."),
    ("attention.out.", "attn_output."),
    ("feed_forward.up.", "ffn_up."),
    ("feed_forward.down.", "ffn_down."),
    (".scale", ".weight"),
    (".shift", ".bias"),
)


def to_ctranslate2(directory: Path) -> None:
    """By its own converter, in fp32 and int8."""
    from ctranslate2.converters import TransformersConverter

    for precision, quantization in (("fp32", "float32"), ("int8", "int8")):
        converter = TransformersConverter(str(directory / CHECKPOINT))
        converter.convert(str(directory / f"ctranslate2-{precision}"), quantization=quantization)


def to_gguf(directory: Path) -> None:
    """F32 by the gguf package, and from it Q8_0 and Q4_0 by llama.cpp's own quantiser."""
    import llama_cpp

    source = directory / "F32.gguf"
    write_gguf(directory / CHECKPOINT, source)
    quiet(llama_cpp)
    for name in ("Q8_0", "Q4_0"):
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        settings.nthread = THREADS
        target = directory / f"{name}.gguf"
        if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
            raise RuntimeError(f"llama.cpp could not write {target}")


def write_gguf(directory: Path, path: Path) -> None:
    """The checkpoint in GGUF, all of it in F32; the head is the token embedding there too."""
    import gguf

    config, tensors = checkpoint.read(directory)
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.emb_dim)
    writer.add_feed_forward_length(4 * config.emb_dim)
    writer.add_block_count(config.n_layers)
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    add_vocabulary(writer, directory, config.vocab_size)
    for name, tensor in tensors.items():
        array = tensor.to_numpy().astype(np.float32)
        if name.startswith("blocks.") and array.ndim == 2:
            array = np.ascontiguousarray(array.T)
        for ours, theirs in GGUF_NAMES:
            name = name.replace(ours, theirs)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: object, directory: Path, size: int) -> None:
    """The vocabulary, filled up to the model's size, and its merges."""
    import gguf

    ids = json.loads((directory / "vocab.json").read_text())
    names = {token: name for name, token in ids.items()}
    normal, control, unused = (
        gguf.TokenType.NORMAL,
        gguf.TokenType.CONTROL,
        gguf.TokenType.UNUSED,
    )
    tokens = [names.get(token, f"[unused {token}]") for token in range(size)]
    kinds = [normal if token in names else unused for token in range(size)]
    if END_OF_TEXT in ids:
        kinds[ids[END_OF_TEXT]] = control
        writer.add_bos_token_id(ids[END_OF_TEXT])
        writer.add_eos_token_id(ids[END_OF_TEXT])
    merges = (directory / "merges.txt").read_text().splitlines()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge for merge in merges if merge and not merge.startswith("#v")])


if __name__ == "__main__":
    {"CTranslate2": to_ctranslate2, "llama.cpp": to_gguf}[sys.argv[2]](Path(sys.argv[1]))
