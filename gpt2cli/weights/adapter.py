"""LoRA adapters as files, in the layout of PEFT: what strangers trained, and what others read.

An adapter adds a product of two thin matrices to some of a model's, W + s · (B A)ᵀ. Hu et al.
2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). PEFT keeps A as
(rank, in) and B as (out, rank), although GPT-2's W is (in, out).

A directory holds `adapter_config.json` and `adapter_model.safetensors`. What is adapted is read
from the tensors' names; the config says how strongly, and which tensors there have to be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gpt2cli.arrays import NDArray, are_numbers
from gpt2cli.config.lora import MATRICES
from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import WeightsError, shown
from gpt2cli.weights import peft_config
from gpt2cli.weights.layout import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from gpt2cli.weights.names import MASKS, PREFIX, hub_name, parameter_shapes
from gpt2cli.weights.peft_config import PeftConfig
from gpt2cli.weights.safetensors import read_mapped, write_arrays, write_text

_WEIGHTS = tuple(f"{name}.weight" for name in MATRICES)
_PEFT_PREFIX = "base_model.model."
# What adapters hold that are not plain LoRA, by a part of the tensor's name.
_FOREIGN = {
    "lora_magnitude_vector": "DoRA",
    "lora_embedding_": "an adapted embedding",
    "lm_head": "a head of its own, where GPT-2's is the token embedding",
    "wte.": "a token embedding of its own, which is also the head",
    "base_layer.": "biases of the base model",
}
_LISTED = 3  # names in a message


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a matrix (in, out): `scale` · (`b` `a`)ᵀ, with a (rank, in), b (out, rank).

    The scale is alpha / rank, or with `rslora` alpha / √rank (Kalajdzievski 2023,
    arXiv:2312.03732).
    """

    a: NDArray
    b: NDArray
    alpha: float
    rslora: bool = False

    @property
    def rank(self) -> int:
        """Rows of `a`, columns of `b`."""
        return len(self.a)

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Changes to a model's parameters, in fp32 and by our names of them.

    `saved` holds parameters that were trained as a whole ("modules to save"), and takes their
    place. `dropout` is that of training, `base` the name of the model it was made for.
    """

    updates: Mapping[str, LowRank]
    saved: Mapping[str, NDArray] = field(default_factory=dict)
    dropout: float = 0.0
    base: str = ""

    @property
    def parameters(self) -> int:
        """The numbers in it."""
        factors = sum(update.a.size + update.b.size for update in self.updates.values())
        return factors + sum(array.size for array in self.saved.values())

    def describe(self) -> dict[str, list[Any]]:
        """Ranks, the kinds of matrices that have them, and the modules trained as a whole."""
        names = [_module(name) for name in self.updates]
        return {
            "ranks": sorted({update.rank for update in self.updates.values()}),
            "targets": [m for m in MATRICES if any(name.endswith(f"{m}.weight") for name in names)],
            "saved": sorted({hub_name(n).rpartition(".")[0] for n in self.saved}),
        }


def files(directory: Path) -> tuple[Path, Path]:
    """An adapter's config and its weights. Raises `WeightsError` if they are not both there."""
    found = directory / ADAPTER_CONFIG, directory / ADAPTER_WEIGHTS
    missing = [path.name for path in found if not path.is_file()]  # a FIFO would block its reader
    if missing == [ADAPTER_WEIGHTS] and (directory / ADAPTER_PICKLE).exists():
        raise WeightsError(
            f"{directory} has its adapter only as a pickle ({ADAPTER_PICKLE}), which can run any "
            "code when opened; gpt2cli reads only safetensors, which PEFT's save_pretrained writes"
        )
    if missing:
        raise WeightsError(f"{directory} holds no adapter: it has no {missing[0]}")
    return found


def read(directory: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of this architecture.

    Raises `WeightsError` for one that is damaged, incomplete, made for another size, or changes
    more than low-rank updates and whole parameters can.
    """
    config_file, weights_file = files(directory)
    settings, arrays = peft_config.read(config_file), _arrays(weights_file)
    shapes = parameter_shapes(config)
    ours = {_module(name): name for name in shapes}
    factors, saved = _sorted(arrays, ours, directory)
    updates = {
        ours[name]: _low_rank(name, pair, settings, directory) for name, pair in factors.items()
    }
    found = {name: (u.a.shape[1], len(u.b)) for name, u in updates.items()}
    found |= {ours[name]: array.shape for name, array in saved.items()}
    _check_shapes(found, shapes, directory)
    _check_complete(settings, ours, factors, saved, directory)
    return Adapter(
        updates, {ours[n]: a for n, a in saved.items()}, settings.lora_dropout, settings.base
    )


def _module(name: str) -> str:
    """The name, in transformers' GPT2LMHeadModel, of one of our parameters."""
    return PREFIX + hub_name(name)


def _arrays(path: Path) -> dict[str, NDArray]:
    """The tensors of an adapter, by the names of the modules that they change."""
    arrays: dict[str, NDArray] = {}
    for key, tensor in read_mapped(path, MASKS).items():
        # A GPT2Model, which has no head, lacks the second prefix.
        name = PREFIX + key.removeprefix(_PEFT_PREFIX).removeprefix(PREFIX)
        if not key.startswith(_PEFT_PREFIX) or name in arrays:
            raise _unexpected([key], path.parent)
        arrays[name] = tensor.to_numpy()
        if not are_numbers(arrays[name]):
            raise WeightsError(f"{path}: {shown(key)} holds NaN or infinity: it is damaged")
    return arrays


_Factors = dict[str, dict[str, NDArray]]  # parameter → A and B


def _sorted(
    arrays: Mapping[str, NDArray], ours: Mapping[str, str], directory: Path
) -> tuple[_Factors, dict[str, NDArray]]:
    """Factors of updates, and whole parameters. Raises `WeightsError` for anything else."""
    factors: _Factors = {}
    saved: dict[str, NDArray] = {}
    unexpected = []
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".lora_")
        parameter = f"{module}.weight"
        if foreign := next((what for part, what in _FOREIGN.items() if part in name), None):
            raise WeightsError(
                f"the adapter {directory} holds {foreign} ({shown(name)}); gpt2cli reads plain LoRA"
            )
        if kind in ("A.weight", "B.weight") and parameter.endswith(_WEIGHTS):
            if parameter not in ours:
                raise WeightsError(
                    f"the adapter {directory} is made for a GPT-2 of another size, which has "
                    f"{shown(module)}"
                )
            factors.setdefault(parameter, {})[kind[0]] = array
        elif name in ours:
            saved[name] = array
        else:
            unexpected.append(name)
    if unexpected:
        raise _unexpected(unexpected, directory)
    return factors, saved


def _check_complete(
    settings: PeftConfig,
    names: Iterable[str],
    factors: Iterable[str],
    saved: Iterable[str],
    directory: Path,
) -> None:
    """Compare the parameters found with those that the config says are changed."""
    adapted = {name for name in names if name.endswith(_WEIGHTS) and settings.adapts(name)}
    kept = {name for name in names if settings.saves(name)}
    if missing := (adapted | kept) - {*factors, *saved}:
        raise WeightsError(
            f"the adapter {directory} is incomplete: it has nothing for {_list(missing)}"
        )
    if extra := set(saved) - kept:
        raise _unexpected(extra, directory)


def _low_rank(
    name: str, pair: Mapping[str, NDArray], settings: PeftConfig, directory: Path
) -> LowRank:
    """One update. Raises `WeightsError` if its factors do not belong together."""
    module = name.removesuffix(".weight")
    if len(pair) < 2:
        [given], [absent] = pair, {"A", "B"} - set(pair)
        raise WeightsError(
            f"the adapter {directory} is incomplete: {module} has lora_{given}, not lora_{absent}"
        )
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1] or not a.size:
        raise WeightsError(
            f"the adapter {directory} is damaged: in {module} lora_A is {a.shape}, lora_B {b.shape}"
        )
    if len(a) != (rank := settings.rank(module)):
        raise WeightsError(
            f"the adapter {directory} has rank {len(a)} in {module}, and {rank} in its config"
        )
    return LowRank(a, b, settings.alpha(module), settings.use_rslora)


def _check_shapes(
    found: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    directory: Path,
) -> None:
    for name, shape in found.items():
        if shape != shapes[name]:
            raise WeightsError(
                f"the adapter {directory} is made for a GPT-2 of another size: "
                f"{hub_name(name)} is {shapes[name]} here, and {shape} there"
            )


def _unexpected(names: Collection[str], directory: Path) -> WeightsError:
    return WeightsError(
        f"the adapter {directory} holds {_list(names)}, which is no change that gpt2cli knows"
    )


def _list(names: Collection[str]) -> str:
    """The first names, shortened where a stranger made them long."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name).strip("'\"") for name in sorted(names)[:_LISTED]) + more


def write(adapter: Adapter, directory: Path, config: ModelConfig) -> None:
    """Write an adapter of a model of this architecture so that PEFT loads it.

    An older one there is replaced. Raises `WeightsError` where it cannot be written.
    """
    tensors: dict[str, NDArray] = {}
    for name, update in adapter.updates.items():
        module = _PEFT_PREFIX + _module(name).removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": update.a, f"{module}.lora_B.weight": update.b}
    tensors |= {_PEFT_PREFIX + _module(name): array for name, array in adapter.saved.items()}
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_settings(adapter, config), indent=2) + "\n"
    # Weights come last: with them the directory is an adapter.
    write_text(text, directory / ADAPTER_CONFIG)
    write_arrays(tensors, directory / ADAPTER_WEIGHTS, {"format": "pt"})


def _settings(adapter: Adapter, config: ModelConfig) -> dict[str, object]:
    """The config in PEFT's words: the usual rank and alpha, and by name what differs from them."""
    updates = {
        _module(name).removesuffix(".weight"): update for name, update in adapter.updates.items()
    }
    ranks = {name: update.rank for name, update in updates.items()}
    alphas = {name: _whole(update.alpha) for name, update in updates.items()}
    rank, alpha = _usual(ranks, 8), _usual(alphas, 8)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": any(update.rslora for update in updates.values()),
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_modules": _targets(updates, config.n_layers),
        "modules_to_save": sorted({_module(n).rpartition(".")[0] for n in adapter.saved}) or None,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
    }


def _targets(modules: Iterable[str], layers: int) -> list[str]:
    """What is adapted, by the names that PEFT compares with the ends of its own."""
    given = set(modules)
    everywhere = [m for m in MATRICES if sum(name.endswith(m) for name in given) == layers]
    return everywhere + sorted(name for name in given if not name.endswith(tuple(everywhere)))


_T = TypeVar("_T", int, float)


def _usual(values: Mapping[str, _T], otherwise: _T) -> _T:
    counted = Counter(values.values()).most_common(1)
    return counted[0][0] if counted else otherwise


def _whole(number: float) -> float:
    """An int where that says the same, as PEFT declares it."""
    return int(number) if number == int(number) else number
