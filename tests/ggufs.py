"""GGUF files of small models, as we write them, and what the `gguf` package reads in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.text import vocabulary
from gpt2cli.text.vocabulary import Vocabulary
from gpt2cli.weights import checkpoint
from gpt2cli.weights.gguf import export


def write(
    directory: Path, path: Path, precision: str = "fp32", words: Vocabulary | None = None
) -> Path:
    """A checkpoint as a GGUF file, with its own vocabulary or another."""
    config, tensors = checkpoint.read(directory)
    plan = export.Plan(config, words or vocabulary.read(directory), precision)
    export.write(plan, tensors, path, "tiny")
    return path


def metadata(path: Path) -> dict[str, Any]:
    """All of a file's metadata, by the package's own reader."""
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, NDArray]:
    """All tensors of a file, decoded by the package."""
    return {
        tensor.name: np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }
