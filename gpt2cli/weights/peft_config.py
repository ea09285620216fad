"""PEFT's `adapter_config.json`: how strong an adapter's updates are, and which there have to be.

Names are compared as PEFT does: a pattern is a regular expression for the end of a module's
name, a target one that ends it, or, as a single string, a regular expression for all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import WeightsError, shown
from gpt2cli.files import load_json

LARGEST = 2**20  # bytes; PEFT's own are a few thousand
_MOST_REPEATS = 3  # in a regular expression of a stranger
# Settings that change what an adapter computes in ways that its tensors do not show.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases of the updates",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "adapted parameters outside of layers",
    "trainable_token_indices": "trained tokens of an embedding",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# These leave the base model as it is; others, such as PiSSA, change it.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The settings of a LoRA adapter that matter once it has been trained, by PEFT's names."""

    base: str
    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    target_modules: tuple[str, ...] | re.Pattern[str] | None
    exclude_modules: tuple[str, ...] | re.Pattern[str] | None
    layers: tuple[int, ...] | None

    def rank(self, module: str) -> int:
        """The rank of a module's update."""
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.r)

    def alpha(self, module: str) -> float:
        """The alpha of a module's update."""
        return self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha)

    def saves(self, parameter: str) -> bool:
        """Whether a parameter was trained as a whole: it, or a module around it, is named."""
        parts = parameter.split(".")
        modules = [".".join(parts[:n]) for n in range(1, len(parts))]
        return any(_is_named(module, self.modules_to_save) for module in modules)

    def adapts(self, parameter: str) -> bool:
        """Whether a matrix has an update, as far as the config says."""
        module = parameter.removesuffix(".weight")
        if _is_named(module, self.exclude_modules):
            return False
        layer = re.search(r"\.(\d+)\.", module)
        if self.layers is not None and not (layer and int(layer[1]) in self.layers):
            return False
        return _is_named(module, self.target_modules)


def _matching(patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that fits a module, or nothing."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), "")


def _is_named(module: str, names: tuple[str, ...] | re.Pattern[str] | None) -> bool:
    if isinstance(names, re.Pattern):
        return names.fullmatch(module) is not None
    return any(f".{module}".endswith(f".{name}") for name in names or ())


def read(path: Path) -> PeftConfig:
    """Read an adapter's config. Raises `WeightsError` for one that is no plain LoRA's."""
    return _Reader(_json(path), path).config()


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise WeightsError(f"{path} is too large to be an adapter's config")
        data = load_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise WeightsError(f"{path} must hold a JSON object")
    return data


@dataclass(frozen=True, slots=True)
class _Reader:
    """Settings by name, each checked; what is absent or null has PEFT's default."""

    data: Mapping[str, Any]
    path: Path

    def config(self) -> PeftConfig:
        self._check_plain()
        targets = self.data.get("target_modules")
        return PeftConfig(
            base=str(self.data.get("base_model_name_or_path") or ""),
            r=self._rank("r", self.data.get("r") or 8),
            lora_alpha=self._number("lora_alpha", self.data.get("lora_alpha", 8)),
            lora_dropout=self._number("lora_dropout", self.data.get("lora_dropout", 0)),
            use_rslora=self.data.get("use_rslora") is True,
            rank_pattern={k: self._rank(k, v) for k, v in self._pattern("rank_pattern").items()},
            alpha_pattern={
                k: self._number(k, v) for k, v in self._pattern("alpha_pattern").items()
            },
            modules_to_save=self._names("modules_to_save"),
            # Of "all-linear" PEFT itself keeps a list when it saves.
            target_modules=None if targets == "all-linear" else self._modules("target_modules"),
            exclude_modules=self._modules("exclude_modules"),
            layers=self._layers(),
        )

    def _check_plain(self) -> None:
        """Raise `WeightsError` for anything but low-rank updates of matrices."""
        kind, bias = self.data.get("peft_type"), self.data.get("bias")
        if kind != "LORA":
            raise WeightsError(f"{self.path}: peft_type is {shown(kind)}; gpt2cli reads only LORA")
        for key, what in _UNSUPPORTED.items():
            if self.data.get(key):
                raise WeightsError(f"{self.path}: {key} asks for {what}; gpt2cli reads plain LoRA")
        if bias not in (None, "none"):
            raise WeightsError(f"{self.path}: bias is {shown(bias)}; gpt2cli reads only 'none'")
        if (initial := self.data.get("init_lora_weights")) not in _INITIAL:
            raise WeightsError(
                f"{self.path}: init_lora_weights is {shown(initial)}, which changes the base model "
                "too; let PEFT convert the adapter to plain LoRA when it saves it"
            )

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
            return float(value)
        raise self._wrong(key, value, "a number")

    def _rank(self, key: str, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9:
            return value
        raise self._wrong(key, value, "a rank")

    def _pattern(self, key: str) -> dict[str, Any]:
        value = self.data.get(key) or {}
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        for pattern in value:
            self._regex(key, pattern)
        return value

    def _names(self, key: str) -> tuple[str, ...]:
        value = self.data.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong(key, value, "a list of names")
        return tuple(value)

    def _modules(self, key: str) -> tuple[str, ...] | re.Pattern[str] | None:
        value = self.data.get(key)
        return self._regex(key, value) if isinstance(value, str) else self._names(key)

    def _regex(self, key: str, pattern: str) -> re.Pattern[str]:
        """A regular expression that cannot take long: few repeats, none of them of a group."""
        repeats = len(re.findall(r"[*+?]", pattern))
        if repeats <= _MOST_REPEATS and not re.search(r"\)[*+?]|\{|\(\?[^:]", pattern):
            try:
                return re.compile(pattern)
            except (re.error, OverflowError, RecursionError):
                pass
        raise self._wrong(key, pattern, "a simple regular expression")

    def _layers(self) -> tuple[int, ...] | None:
        value = self.data.get("layers_to_transform")
        layers = [value] if isinstance(value, int) else value or []
        if not isinstance(layers, list) or not all(isinstance(i, int) for i in layers):
            raise self._wrong("layers_to_transform", value, "a list of layers")
        return tuple(layers) or None

    def _wrong(self, key: str, value: object, kind: str) -> WeightsError:
        return WeightsError(f"{self.path}: {shown(key)} must be {kind}, not {shown(value)}")
