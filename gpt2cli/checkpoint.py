"""Weights in safetensors files: reading into our model, and writing what others can read.

The files use OpenAI's names as the Hugging Face hub spells them; `NAMES` is the whole
mapping. Nothing here opens a pickle, which could run code of a stranger's choosing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2cli.config import ModelConfig, read_hub_config, to_hub_config
from gpt2cli.errors import WeightsError
from gpt2cli.model import GPT2

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"  # where weights are split over several files
CONFIG_FILE = "config.json"

# Ours → the hub's, applied in this order. Matrices are (in, out) on both sides, so nothing
# is transposed.
NAMES = (
    ("token_embedding.", "wte."),
    ("position_embedding.", "wpe."),
    ("final_norm.", "ln_f."),
    ("blocks.", "h."),
    ("norm1.", "ln_1."),
    ("norm2.", "ln_2."),
    ("attention.qkv.", "attn.c_attn."),
    ("attention.out.", "attn.c_proj."),
    ("feed_forward.up.", "mlp.c_fc."),
    ("feed_forward.down.", "mlp.c_proj."),
    (".scale", ".weight"),
    (".shift", ".bias"),
)
PREFIX = "transformer."  # some checkpoints have it, some do not
# Causal masks that old checkpoints carry, and the head, which is the token embedding again.
IGNORED = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
QKV_BIAS = ".attn.c_attn.bias"


def hub_name(name: str) -> str:
    """The hub's name, without prefix, of one of our parameters."""
    for ours, theirs in NAMES:
        name = name.replace(ours, theirs)
    return name


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open safetensors file, not yet read."""

    file: Any
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, from the file's header."""
        return tuple(self.file.get_slice(self.key).get_shape())

    def read(self) -> Tensor:
        """The tensor, still backed by the memory-mapped file."""
        tensor: Tensor = self.file.get_tensor(self.key)
        return tensor


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises `WeightsError` when there are none."""
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    index = directory / INDEX_FILE
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            raise WeightsError(f"{index} is damaged; fetch the model again") from None
        return [directory / str(name) for name in sorted(names)]
    raise WeightsError(_no_weights(directory))


def _no_weights(directory: Path) -> str:
    pickled = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in directory.glob(kind))
    if pickled:
        return (
            f"{directory} has only pickled weights ({pickled[0]}), which can run any code when "
            "opened; gpt2cli reads only safetensors, which transformers' save_pretrained writes"
        )
    return f"{directory} has no {WEIGHTS_FILE}"


@contextmanager
def _open_all(files: list[Path]) -> Iterator[dict[str, StoredTensor]]:
    """Memory-map the files and list their tensors by hub name, without prefix."""
    with ExitStack() as stack:
        tensors: dict[str, StoredTensor] = {}
        for path in files:
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is damaged or incomplete ({error})") from None
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                name = key.removeprefix(PREFIX)
                if not name.endswith(IGNORED):
                    tensors[name] = StoredTensor(opened, key)
        yield tensors


def load(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT2:
    """Read a checkpoint directory into a model for inference.

    Tensors that already have `dtype` stay memory-mapped on a CPU: no second copy is made.
    Raises `WeightsError` that lists every missing, unexpected or wrongly shaped tensor.
    """
    config = read_hub_config(directory / CONFIG_FILE)
    with _open_all(weight_files(directory)) as tensors:
        config = _settle_qkv_bias(config, tensors)
        with torch.device("meta"):
            model = GPT2(config)
        _check(model, tensors, directory)
        state = {
            name: tensors[hub_name(name)].read().to(device=device, dtype=dtype)
            for name in model.state_dict()
        }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _settle_qkv_bias(config: ModelConfig, tensors: dict[str, StoredTensor]) -> ModelConfig:
    """Drop the zero biases that `save` adds for transformers' sake; keep any trained since."""
    if config.qkv_bias:
        return config
    biases = [name for name in tensors if name.endswith(QKV_BIAS)]
    if any(tensors[name].read().any() for name in biases):
        return replace(config, qkv_bias=True)
    for name in biases:
        del tensors[name]
    return config


def _check(model: GPT2, tensors: Mapping[str, StoredTensor], directory: Path) -> None:
    wanted = {hub_name(name): tuple(t.shape) for name, t in model.state_dict().items()}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tensors[name].shape} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise WeightsError(f"{directory} does not hold this GPT-2: {'; '.join(problems)}")


def save(model: GPT2, directory: Path, end_of_text: int, dtype: torch.dtype) -> None:
    """Write weights and `config.json` so that `load` and transformers can read them.

    transformers always has QKV biases, so a model without gets zeros there.
    """
    tensors = {hub_name(n): p.detach().to("cpu", dtype) for n, p in model.named_parameters()}
    if not model.config.qkv_bias:
        for i in range(model.config.n_layers):
            tensors[f"h.{i}{QKV_BIAS}"] = torch.zeros(3 * model.config.emb_dim, dtype=dtype)
    directory.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
    write_safetensors(named, directory / WEIGHTS_FILE, {"format": "pt"})
    config = to_hub_config(model.config, end_of_text, str(dtype).removeprefix("torch."))
    with atomic(directory / CONFIG_FILE) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place only if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write one safetensors file, atomically."""
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of one file and its metadata. Raises `WeightsError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            return tensors, dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged or incomplete ({error})") from None
