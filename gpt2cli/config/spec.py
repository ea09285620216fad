"""What a GPT-2 is, in eight numbers, and how those numbers are read from YAML and JSON.

A `Spec` is one file of `configs/`: the architecture (`ModelConfig`), where released
weights are found, and the defaults for sampling and training that suit the model.
Nothing here imports torch, so that a command line is checked before that import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2cli.config.fields import build, coerce
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import ConfigError, shown

_PACKAGE = Path(__file__).parent.parent
BUNDLED_DIR = _PACKAGE / "bundled"
# Inside an installed wheel, else (editable install, plain checkout) beside the package.
CONFIG_DIR = next(d for d in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if d.is_dir())


_LONGEST = 2**16  # bytes of YAML: a model takes a few hundred; also bounds the length of numbers


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
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def load_spec(path: Path) -> Spec:
    """Read one YAML file. Raises `ConfigError` for anything that is not a model."""
    data = read_yaml(path)
    try:
        return _parse_spec(data, path)
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{path.name} holds a number of absurd size") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises `ConfigError` where there is no such file."""
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
    return {str(k): v for k, v in data.items()}


def _check_nodes(root: Any, path: Path) -> None:
    """Raise `ConfigError` for a duplicate key, and for aliases.

    YAML would silently use the last of two keys, and nested aliases let a short file hold
    billions of values.
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
        bundled=coerce(bundled, "bool", f"{source}: bundled"),
        sampling=build(SamplingConfig, sections.get("generation", {}), f"{source}: generation"),
        training=build(TrainingConfig, sections.get("training", {}), f"{source}: training"),
    )


def shipped_specs() -> Iterator[Spec]:
    """Every file of `configs/`, smallest model first."""
    specs = [load_spec(path) for path in CONFIG_DIR.glob("*.yaml")]
    yield from sorted(specs, key=lambda s: s.model.n_layers * s.model.emb_dim**2)


def find_spec(name: str) -> Spec | None:
    """The shipped config called `name` (or one of its aliases), in any case; else None."""
    wanted = name.lower()
    if "/" in wanted:
        return None  # a directory, or a repository
    paths = sorted(CONFIG_DIR.glob("*.yaml"), key=lambda path: path.stem.lower() != wanted)
    for spec in map(load_spec, paths):
        if wanted in {spec.name.lower(), *(a.lower() for a in spec.aliases)}:
            return spec
    return None


def known_names() -> list[str]:
    """Names and aliases of all shipped configs."""
    return [name for spec in shipped_specs() for name in (spec.name, *spec.aliases)]
