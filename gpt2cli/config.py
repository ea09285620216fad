"""What a GPT-2 is, in eight numbers, and how those numbers are read from YAML and JSON.

A `Spec` is one file of `configs/`: the architecture (`ModelConfig`), where released
weights are found, and the defaults for sampling and training that suit the model.
Nothing here imports torch, so that a command line can be checked before it is paid for.
"""

from __future__ import annotations

import difflib
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gpt2cli.errors import ConfigError

END_OF_TEXT = "<|endoftext|>"

_PACKAGE = Path(__file__).parent
BUNDLED_DIR = _PACKAGE / "bundled"
# Inside an installed wheel, else (editable install, plain checkout) beside the package.
CONFIG_DIR = next(d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir())


# Far beyond any GPT-2, and near enough that nothing takes long which counts so far.
_LARGEST = {
    "vocab_size": 10**7,  # training a vocabulary takes 45 bytes for each at once
    "context_length": 10**8,
    "emb_dim": 10**6,
    "n_heads": 10**6,
    "n_layers": 10**4,
    "steps": 10**9,
    "batch_size": 10**9,
    "eval_interval": 10**9,
    "warmup_steps": 10**9,
    "seed": 2**63 - 1,
}
_LONGEST = 2**16  # bytes of YAML: a model takes some hundred, and numbers can be as long
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxdict = 2, 3, 3
_short.maxstring, _short.maxlong, _short.maxother = 60, 30, 60


def shown(value: object) -> str:
    """A value from a file as a message has room for it: cut where it is long or deep."""
    return _short.repr(value)


def _require(condition: bool, key: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{key} must be {rule}, not {shown(value)}", key)


def _require_size(key: str, value: int, least: int) -> None:
    _require(value >= least, key, value, f"at least {least}")
    _require(value <= _LARGEST[key], key, value, f"at most {_LARGEST[key]:,}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The architecture, with the field's names for its sizes.

    Raises `ConfigError`, naming key and value, for sizes that no GPT-2 can have.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float = 0.1
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
            _require_size(key, getattr(self, key), 1)
        _require(
            self.emb_dim % self.n_heads == 0,
            "emb_dim",
            self.emb_dim,
            f"a multiple of n_heads ({self.n_heads})",
        )
        _require(0 <= self.drop_rate < 1, "drop_rate", self.drop_rate, "at least 0 and below 1")
        _require(
            0 < self.layer_norm_eps < math.inf, "layer_norm_eps", self.layer_norm_eps, "above 0"
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head, D = C / H."""
        return self.emb_dim // self.n_heads


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is chosen from the logits; `None` switches a rule off.

    `temperature` 0 means greedy. See `gpt2cli.sampler` for the rules and their order.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    no_repeat_ngram: int | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float = 0.1
    mirostat_tau: float | None = None
    mirostat_eta: float = 0.1

    def __post_init__(self) -> None:
        for key, holds, rule in _SAMPLING_RANGES:
            if (value := getattr(self, key)) is not None:
                _require(holds(value), key, value, rule)
        clash = [key for key in _NOT_WITH_MIROSTAT if getattr(self, key) is not None]
        if self.mirostat_tau is not None and clash:
            raise ConfigError(
                f"mirostat_tau takes the place of {clash[0]}; leave one of them out",
                "mirostat_tau",
                clash[0],
            )

    def updated(self, **given: float | int | None) -> SamplingConfig:
        """These settings with what is not None put in their place.

        Mirostat, when given, takes the place of the rules that it cannot go with.
        """
        given = {key: value for key, value in given.items() if value is not None}
        if "mirostat_tau" in given:
            given = dict.fromkeys(_NOT_WITH_MIROSTAT) | given
        return replace(self, **given)  # type: ignore[arg-type]


_NOT_WITH_MIROSTAT = ("top_k", "top_p", "min_p", "typical_p", "xtc_probability")
_SAMPLING_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("temperature", lambda v: 0 <= v < math.inf, "0 (greedy) or a positive number"),
    ("top_k", lambda v: v >= 1, "at least 1"),
    ("top_p", lambda v: 0 < v <= 1, "above 0 and at most 1"),
    ("min_p", lambda v: 0 <= v <= 1, "between 0 and 1"),
    ("repetition_penalty", lambda v: 0 < v < math.inf, "a positive number (1 is off)"),
    ("frequency_penalty", lambda v: -2 <= v <= 2, "between -2 and 2 (0 is off)"),
    ("presence_penalty", lambda v: -2 <= v <= 2, "between -2 and 2 (0 is off)"),
    ("dry_multiplier", lambda v: 0 <= v < math.inf, "at least 0 (0 is off)"),
    ("dry_base", lambda v: 1 <= v < math.inf, "at least 1"),
    ("dry_allowed_length", lambda v: v >= 1, "at least 1"),
    ("no_repeat_ngram", lambda v: v >= 1, "at least 1"),
    ("typical_p", lambda v: 0 < v <= 1, "above 0 and at most 1 (1 is off)"),
    ("xtc_probability", lambda v: 0 <= v <= 1, "between 0 (off) and 1"),
    # Above a half no two tokens can reach it, so the rule would do nothing.
    ("xtc_threshold", lambda v: 0 < v <= 0.5, "above 0 and at most 0.5"),
    ("mirostat_tau", lambda v: 0 < v < math.inf, "a positive number of bits"),
    ("mirostat_eta", lambda v: 0 < v <= 1, "above 0 and at most 1"),
)


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """One training run. Steps are optimiser steps; `batch_size` counts sequences."""

    steps: int = 5000
    batch_size: int = 32
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    grad_clip: float = 1.0
    val_fraction: float = 0.1
    eval_interval: int = 250
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "eval_interval"):
            _require_size(key, getattr(self, key), 1)
        for key in ("warmup_steps", "seed"):
            _require_size(key, getattr(self, key), 0)
        for key in ("learning_rate", "grad_clip"):
            _require(0 < getattr(self, key) < math.inf, key, getattr(self, key), "above 0")
        for key in ("min_learning_rate", "weight_decay"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "at least 0")
        for key in ("beta1", "beta2"):
            _require(0 <= getattr(self, key) < 1, key, getattr(self, key), "in [0, 1)")
        _require(0 < self.val_fraction < 1, "val_fraction", self.val_fraction, "between 0 and 1")


@dataclass(frozen=True, slots=True)
class Spec:
    """One YAML file: a model, and where its weights and defaults come from.

    `repo_id` names a hub repository; `bundled` weights travel in the package; with
    neither, the file describes a model to train (or, as for GPT-3, only to look at).
    """

    name: str
    model: ModelConfig
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    bundled: bool = False
    generation: SamplingConfig = field(default_factory=SamplingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


_T = TypeVar("_T", ModelConfig, SamplingConfig, TrainingConfig)


def build(kind: type[_T], values: Mapping[str, object], source: str) -> _T:
    """Make a config dataclass from parsed YAML or JSON, checking keys and types.

    Raises `ConfigError` that names `source` and the key.
    """
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ConfigError(f"{source}: unknown key {shown(key)}{hint}")
    missing = [n for n, f in known.items() if n not in values and _has_no_default(f)]
    if missing:
        raise ConfigError(f"{source}: missing {', '.join(missing)}")
    types = {name: str(f.type) for name, f in known.items()}
    checked = {k: _coerce(v, types[k], f"{source}: {k}") for k, v in values.items()}
    try:
        return kind(**checked)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _has_no_default(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _coerce(value: object, annotation: str, where: str) -> Any:
    """Accept exactly the annotated type; a float may be written 1, 1.0 or 1e-5."""
    kind, optional = annotation.removesuffix(" | None"), annotation.endswith(" | None")
    if value is None and optional:
        return None
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    # YAML 1.1 reads 1e-5, which has no dot, as a string.
    if kind == "float" and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    article = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]
    raise ConfigError(f"{where} must be {article}, not {shown(value)}")


def load_spec(path: Path) -> Spec:
    """Read one YAML file. Raises `ConfigError` for anything that is not a model."""
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:
            raise ConfigError(f"{path} is too long to describe a model ({_LONGEST:,} bytes do)")
        # The C loader is several times faster, and absent from some builds of PyYAML.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text.decode("utf-8"))
        node = loader.get_single_node()
        _check_nodes(node, path)
        data = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except (yaml.YAMLError, ValueError, KeyError, RecursionError, OverflowError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {detail}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold keys such as emb_dim: 768")
    try:
        return _parse_spec({str(k): v for k, v in data.items()}, path)
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{path.name} holds a number of absurd size") from None


def _check_nodes(root: Any, path: Path) -> None:
    """Raise `ConfigError` for a key that is given twice, and for aliases.

    YAML would take the last of two keys in silence, and a few aliases of aliases make a file of
    some lines hold billions of values.
    """
    seen: set[int] = set()
    rest = [] if root is None else [root]
    while rest:
        node = rest.pop()
        if id(node) in seen:
            line = node.start_mark.line + 1
            raise ConfigError(f"{path}: write what stands at line {line} out, without aliases")
        seen.add(id(node))
        if node.id == "sequence":
            rest += node.value
        elif node.id == "mapping":
            keys: set[str] = set()
            for key, value in node.value:
                if key.id == "scalar":
                    if key.value in keys:
                        line = key.start_mark.line + 1
                        raise ConfigError(
                            f"{path}: key {shown(key.value)} is given twice (line {line})"
                        )
                    keys.add(key.value)
                rest += [key, value]


def _parse_spec(data: dict[str, Any], path: Path) -> Spec:
    source = path.name
    sections = {k: data.pop(k) for k in ("generation", "training") if k in data}
    sections = {k: {} if v is None else v for k, v in sections.items()}
    for key, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{source}: {key} must be a section of keys, not {shown(section)}")
    aliases = data.pop("aliases", None)
    aliases = [] if aliases is None else aliases
    if not isinstance(aliases, list) or not all(isinstance(a, str | int | float) for a in aliases):
        raise ConfigError(f"{source}: aliases must be a list of names, not {shown(aliases)}")
    repo_id = data.pop("repo_id", None)
    if repo_id is not None and not isinstance(repo_id, str):
        raise ConfigError(
            f"{source}: repo_id must be text such as owner/name, not {shown(repo_id)}"
        )
    bundled = data.pop("bundled", False)
    return Spec(
        name=path.stem,
        model=build(ModelConfig, data, source),
        aliases=tuple(str(alias) for alias in aliases),
        repo_id=repo_id,
        bundled=_coerce(bundled, "bool", f"{source}: bundled"),
        generation=build(SamplingConfig, sections.get("generation", {}), f"{source}: generation"),
        training=build(TrainingConfig, sections.get("training", {}), f"{source}: training"),
    )


def shipped_specs() -> Iterator[Spec]:
    """Every file of `configs/`, smallest model first."""
    specs = [load_spec(path) for path in CONFIG_DIR.glob("*.yaml")]
    yield from sorted(specs, key=lambda s: s.model.n_layers * s.model.emb_dim**2)


def find_spec(name: str) -> Spec | None:
    """The shipped config called `name` (or one of its aliases), in any case; else None."""
    wanted = name.lower()
    for spec in shipped_specs():
        if wanted in {spec.name.lower(), *(a.lower() for a in spec.aliases)}:
            return spec
    return None


def known_names() -> list[str]:
    """Names and aliases of all shipped configs."""
    return [name for spec in shipped_specs() for name in (spec.name, *spec.aliases)]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint such as "; did you mean 'top_p'?", or nothing when no choice is near.

    It names up to three choices, where they are about equally near.
    """
    near = nearest(word, choices)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three choices about as like `word` as the likest of them, that one first."""
    likeness = {choice: _likeness(_bare(word), _bare(choice)) for choice in choices}
    best = max(likeness.values(), default=0.0)
    least = max(cutoff, best - 0.05 if best < 1 else 1)
    near = [choice for choice in likeness if likeness[choice] >= least]
    return sorted(near, key=lambda choice: -likeness[choice])[:3]


def _bare(word: str) -> str:
    """A word without what people get wrong about names: case, dashes in front, underscores."""
    return word.lower().replace("_", "-").lstrip("-")


def _likeness(word: str, choice: str) -> float:
    """From 0 to 1; a beginning of at least two letters is most of the way to the whole word."""
    ratio = difflib.SequenceMatcher(None, word, choice).ratio()
    return (2 + ratio) / 3 if len(word) > 1 and choice.startswith(word) else ratio


# config.json of the Hugging Face layout → ours. The first key present wins.
_HUB_KEYS = {
    "vocab_size": ("vocab_size",),
    "context_length": ("n_positions", "n_ctx"),
    "emb_dim": ("n_embd",),
    "n_heads": ("n_head",),
    "n_layers": ("n_layer",),
    "drop_rate": ("resid_pdrop",),
    "layer_norm_eps": ("layer_norm_epsilon",),
    "qkv_bias": ("qkv_bias",),
}
# Variations that transformers' GPT2Config allows and this model does not compute.
_HUB_FIXED: dict[str, tuple[object, ...]] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True, False),  # see `is_tied`
}


def read_hub_config(path: Path) -> ModelConfig:
    """Read a Hugging Face `config.json` into a `ModelConfig`.

    Raises `ConfigError` when the file is not GPT-2's or asks for a variation that
    would change the computation.
    """
    data = _read_json(path)
    for key, allowed in _HUB_FIXED.items():
        if key in data and data[key] not in allowed:
            raise ConfigError(
                f"{path} is not a GPT-2 that gpt2cli can run: {key} is {shown(data[key])}"
            )
    values = {
        ours: next(data[theirs] for theirs in keys if theirs in data)
        for ours, keys in _HUB_KEYS.items()
        if any(theirs in data for theirs in keys)
    }
    config = build(ModelConfig, values, str(path))
    if (inner := data.get("n_inner")) not in (None, 4 * config.emb_dim):
        raise ConfigError(f"{path}: n_inner is {shown(inner)}; GPT-2 has 4 × n_embd")
    return config


def is_tied(path: Path) -> bool:
    """Whether a `config.json` leaves the head out of the weights, as GPT-2's do.

    If not, they hold it, and only they tell whether it is the token embedding again.
    """
    return bool(_read_json(path).get("tie_word_embeddings", True))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return data


def to_hub_config(config: ModelConfig, eos_token_id: int, dtype: str) -> dict[str, object]:
    """The `config.json` that transformers reads for this model; the inverse of the above."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.emb_dim,
        "n_head": config.n_heads,
        "n_layer": config.n_layers,
        "embd_pdrop": config.drop_rate,
        "attn_pdrop": 0.0,
        "resid_pdrop": config.drop_rate,
        "layer_norm_epsilon": config.layer_norm_eps,
        "qkv_bias": config.qkv_bias,
        "tie_word_embeddings": True,
        "bos_token_id": eos_token_id,
        "eos_token_id": eos_token_id,
        "dtype": dtype,
    }
