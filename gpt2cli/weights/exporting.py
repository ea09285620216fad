"""A checkpoint, adapters merged into it, written for other programs: the hub's layout, or GGUF.

One tensor at a time, and whole or not at all: what was there before is kept until the new is done.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2cli.errors import UsageError
from gpt2cli.files import check_space, check_writable, new_directory
from gpt2cli.progress import Progress
from gpt2cli.text import vocabulary
from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.weights import adapter, checkpoint, layout
from gpt2cli.weights.names import parameter_shapes
from gpt2cli.weights.safetensors import StoredTensor

if TYPE_CHECKING:
    from gpt2cli.weights.merging import Chosen

_FLOATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # PyTorch's name → ours


def to_directory(
    source: Path,
    target: Path,
    precision: str | None = None,
    adapters: Sequence[Chosen] = (),
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a directory that `load`, transformers and mlx-lm read, with the vocabulary's files.

    Without `precision` it is the one that the weights are stored in; with adapters fp32, since a
    smaller one would round what they add away. Raises `UsageError` if the directory exists, unless
    it holds a model and `overwrite` allows its end; `WeightsError` for numbers that the precision
    cannot hold, and where there is no room.
    """
    if overwrite and target.exists() and not (target / layout.CONFIG).is_file():
        raise UsageError(f"{target} exists and holds no model; write to another directory")
    config, tensors = checkpoint.read(source, adapters)
    torch_names = {name: torch_name for torch_name, name in _FLOATS.items()}
    dtype = torch_names[precision or stored_precision(tensors, adapters)]
    size = np.dtype("f4" if dtype == "float32" else "f2").itemsize
    numbers = sum(map(math.prod, parameter_shapes(config).values()))
    check_space(target, size * numbers)
    found = vocabulary.read(source)
    end_of_text = found.added.get(END_OF_TEXT, {}).get("id", 0)
    with new_directory(target, overwrite=overwrite) as new:
        for path in vocabulary.files(source):
            shutil.copyfile(path, new / path.name)
        checkpoint.write(
            config,
            tensors.items(),
            dict.fromkeys(tensors, dtype),
            new,
            end_of_text,
            progress=progress,
        )


def to_gguf(
    source: Path,
    target: Path,
    precision: str | None = None,
    adapters: Sequence[Chosen] = (),
    *,
    name: str = "GPT-2",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file, in a key of `gguf.export.PRECISIONS`; without one as `to_directory`.

    `name` is what the file says that the model is called. Raises `UsageError` if the file exists
    and may not be overwritten, if the sizes do not allow the precision, or without the gguf
    package; `TokenizerError` for a vocabulary that llama.cpp cannot have; else as `to_directory`.
    """
    from gpt2cli.weights.gguf import export

    _check_target(target, overwrite)
    config, tensors = checkpoint.read(source, adapters)
    kind = precision or stored_precision(tensors, adapters)
    plan = export.Plan(config, vocabulary.read(source), kind)
    check_space(target, plan.bytes)
    export.write(plan, tensors, target, name, progress)


def adapter_to_gguf(source: Path, target: Path, chosen: Chosen, *, overwrite: bool = False) -> None:
    """Write an adapter alone, for the model in `source`, as a GGUF file that llama.cpp adds to it.

    Raises `WeightsError` for one that changes more than matrices; else as `to_gguf`.
    """
    from gpt2cli.weights.gguf import adapter as gguf_adapter

    _check_target(target, overwrite)
    found = adapter.read(chosen.directory, checkpoint.read(source)[0])
    check_space(target, 4 * found.parameters)
    gguf_adapter.write(found, target, chosen.directory.resolve().name, chosen.weight)


def stored_precision(tensors: dict[str, StoredTensor], adapters: Sequence[Chosen] = ()) -> str:
    """The precision that holds what is stored: that of all tensors if they agree, else fp32."""
    kinds = {tensor.dtype for tensor in tensors.values()}
    return "fp32" if adapters or len(kinds) > 1 else _FLOATS.get(kinds.pop(), "fp32")


def _check_target(target: Path, overwrite: bool) -> None:
    check_writable(target)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists; set overwrite to replace it", "overwrite")
