"""Weights in safetensors files: reading into our model, and writing what others can read.

The files use OpenAI's names as the Hugging Face hub spells them (`weights.names`). Nothing here
opens a pickle, which could run a stranger's code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.hub import is_tied, read_hub_config, to_hub_config
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import WeightsError, shown
from gpt2cli.progress import Progress
from gpt2cli.weights import layout
from gpt2cli.weights.names import HEAD, MASKS, PREFIX, QKV_BIAS, hub_name, parameter_shapes
from gpt2cli.weights.safetensors import (
    StoredTensor,
    read_mapped,
    write_safetensors,
    write_streamed,
    write_text,
)

if TYPE_CHECKING:
    import torch

    from gpt2cli.model.gpt2 import GPT2
    from gpt2cli.weights.merging import Chosen

_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
_COMPARED = 2**20  # elements at a time
_LISTED = 8  # problems that a message lists


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises `WeightsError` when there are none."""
    if (directory / layout.WEIGHTS).is_file():
        return [directory / layout.WEIGHTS]
    index = directory / layout.INDEX
    if index.is_file():
        try:
            names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WeightsError(f"{index} is damaged; fetch the model again") from None
        for name in names:
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise WeightsError(f"{index} names {shown(name)}, which is no file beside it")
        files = [directory / name for name in sorted(set(names))]
        for path in files:
            if not path.is_file():  # opening a FIFO would block until it has a writer
                raise WeightsError(f"{directory} has no file {path.name}; fetch the model again")
        return files
    raise WeightsError(_no_weights(directory))


def _no_weights(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    pickled = [name for name in names if name.endswith(layout.PICKLED)]
    if pickled:
        return layout.refusal(str(directory), pickled[0])
    return f"{directory} has no {layout.WEIGHTS}"


def read(
    directory: Path, adapters: Sequence[Chosen] = ()
) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """The architecture of a checkpoint and its tensors by our names, still in the file.

    `adapters` are merged in when a tensor is used.
    Raises `WeightsError` that lists every missing, unexpected or wrongly shaped tensor.
    """
    config = read_hub_config(directory / layout.CONFIG)
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        for key, tensor in read_mapped(path, MASKS).items():
            if (name := key.removeprefix(PREFIX)) in stored:
                raise WeightsError(f"{path} holds {name} a second time")
            stored[name] = tensor
    config = _settle_qkv_bias(config, stored)
    _settle_head(stored, directory)
    shapes = parameter_shapes(config)
    wanted = {hub_name(name): shape for name, shape in shapes.items()}
    check_shapes(wanted, {name: tensor.shape for name, tensor in stored.items()}, directory)
    tensors = {name: stored[hub_name(name)] for name in shapes}
    if adapters:
        from gpt2cli.weights.merging import merge

        tensors = merge(tensors, config, adapters)
    return config, tensors


def load(
    directory: Path,
    adapters: Sequence[Chosen] = (),
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> GPT2:
    """Read a checkpoint into a PyTorch model for inference, in fp32 by default.

    Tensors that already have `dtype` stay memory-mapped on a CPU: no second copy is made.
    Raises `WeightsError` as `read` does.
    """
    import torch

    config, tensors = read(directory, adapters)
    dtype = dtype or torch.float32
    return assemble(config, {name: t.to_torch(device, dtype) for name, t in tensors.items()})


def assemble(config: ModelConfig, state: Mapping[str, torch.Tensor]) -> GPT2:
    """A PyTorch model for inference around tensors, which are not copied."""
    import torch

    from gpt2cli.model.gpt2 import GPT2

    with torch.device("meta"):
        model = GPT2(config)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _settle_qkv_bias(config: ModelConfig, tensors: dict[str, StoredTensor]) -> ModelConfig:
    """Drop the zero biases that `save` adds for transformers' sake; keep any trained since."""
    if config.qkv_bias:
        return config
    biases = [name for name in tensors if name.endswith(QKV_BIAS)]
    if any(tensors[name].bits.any() for name in biases):
        return replace(config, qkv_bias=True)
    for name in biases:
        del tensors[name]
    return config


def _settle_head(tensors: dict[str, StoredTensor], directory: Path) -> None:
    """Drop a head that is the token embedding again. Raises `WeightsError` for another."""
    head, embedding = tensors.pop(HEAD, None), tensors.get("wte.weight")
    if head is None and not is_tied(directory / layout.CONFIG):
        raise WeightsError(f"{directory} has no {HEAD}, although its config is of a model with one")
    if head is None or embedding is None:
        return
    if not _is_same(head, embedding):
        raise WeightsError(
            f"{directory} has a head of its own: {HEAD} is not the token embedding, with which "
            "GPT-2 predicts"
        )


def _is_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal, compared in slices whose memory is then released."""
    if one.shape != other.shape:
        return False
    for begin in range(0, one.bits.size, _COMPARED):
        span = slice(begin, begin + _COMPARED)
        a, b = (StoredTensor(t.bits.reshape(-1)[span], t.dtype) for t in (one, other))
        if a.dtype == b.dtype:  # by bytes: half precision is slow to compare
            same = np.array_equal(a.bits.view(np.uint8), b.bits.view(np.uint8))
        else:
            same = np.array_equal(a.to_numpy(), b.to_numpy())
        a.release()
        b.release()
        if not same:
            return False
    return True


def check_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    """Raise `WeightsError` that lists every missing, unexpected or wrongly shaped tensor."""
    if len(found) < len(wanted) // 2:
        raise WeightsError(
            f"{where} does not hold this GPT-2: {len(found):,} tensors instead of {len(wanted):,}"
        )
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f"; and {len(problems) - _LISTED:,} more" if len(problems) > _LISTED else ""
        listed = "; ".join(problems[:_LISTED]) + more
        raise WeightsError(f"{where} does not hold this GPT-2: {listed}")


def write_config(config: ModelConfig, directory: Path, end_of_text: int, dtype: str) -> None:
    """Write `config.json` into a directory, which need not exist."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"cannot make {directory}: {error.strerror}") from None
    text = json.dumps(to_hub_config(config, end_of_text, dtype), indent=2) + "\n"
    write_text(text, directory / layout.CONFIG)


def write(
    config: ModelConfig,
    tensors: Iterable[tuple[str, StoredTensor]],
    dtypes: Mapping[str, str],
    directory: Path,
    end_of_text: int,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """As `save`, without PyTorch and one tensor at a time: every parameter, by our names, in order.

    `dtypes` are PyTorch's names of the types that they get. `metadata` are kept in the header.
    """
    shapes = parameter_shapes(config)
    kinds = {hub_name(name): (dtypes[name], shape) for name, shape in shapes.items()}
    usual = dtypes["token_embedding.weight"]
    absent = 0 if config.qkv_bias else config.n_layers
    kinds |= {f"h.{i}{QKV_BIAS}": (usual, (3 * config.emb_dim,)) for i in range(absent)}

    def arrays() -> Iterator[NDArray]:
        for name, tensor in tensors:
            yield tensor.in_type(dtypes[name], hub_name(name))
            tensor.release()
        zeros = StoredTensor(np.zeros(3 * config.emb_dim, np.float32), "float32")
        for _ in range(absent):
            yield zeros.in_type(usual, QKV_BIAS)

    write_config(config, directory, end_of_text, usual)
    path = directory / layout.WEIGHTS
    write_streamed(kinds, arrays(), path, {"format": "pt", **(metadata or {})}, progress)


def save(model: GPT2, directory: Path, end_of_text: int, dtype: torch.dtype) -> None:
    """Write weights and `config.json` so that `load`, transformers and mlx-lm can read them.

    transformers always has QKV biases, so a model without gets zeros there.
    """
    import torch

    tensors = {hub_name(n): p.detach().to("cpu", dtype) for n, p in model.named_parameters()}
    if large := next((n for n, tensor in tensors.items() if not tensor.isfinite().all()), None):
        kind = str(dtype).removeprefix("torch.")
        raise WeightsError(f"{large} has numbers too large for {kind}, or none; nothing was saved")
    if not model.config.qkv_bias:
        for i in range(model.config.n_layers):
            tensors[f"h.{i}{QKV_BIAS}"] = torch.zeros(3 * model.config.emb_dim, dtype=dtype)
    named = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # Weights come last: with them the directory is a model.
    write_config(model.config, directory, end_of_text, str(dtype).removeprefix("torch."))
    write_safetensors(named, directory / layout.WEIGHTS, {"format": "pt"})
