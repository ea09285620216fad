"""What `--model` may name, and the directory of files that it stands for.

A name is looked for in this order: a shipped config or alias, a YAML file, a GGUF file, a
directory, a repository of the hub. `resolve` only looks; `fetch` makes the files present.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2cli.config.hub import read_hub_config
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import USUAL, SamplingConfig
from gpt2cli.config.spec import BUNDLED_DIR, Spec, find_spec, known_names, load_spec, shipped_specs
from gpt2cli.errors import ConfigError, UsageError, WeightsError, did_you_mean
from gpt2cli.weights import cache, layout

if TYPE_CHECKING:
    from gpt2cli.progress import Progress

_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A model that has been found, though perhaps not fetched.

    `directory` is None until the files are present; `repo_id` is None for local models. `file`
    is the GGUF file that the directory is made from.
    """

    name: str
    spec: Spec | None
    repo_id: str | None
    directory: Path | None
    file: Path | None = None

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling defaults that suit the model."""
        return self.spec.sampling if self.spec else USUAL

    @property
    def revision(self) -> str | None:
        """The hub's commit of the files; None if they are not from the hub."""
        return self.directory.name if self.repo_id and self.directory else None

    def config(self) -> ModelConfig:
        """The architecture, from YAML or from the files. Needs no network.

        Raises `UsageError` for a hub repository that is not in the cache.
        """
        if self.spec:
            return self.spec.model
        if self.file:
            from gpt2cli.weights.gguf import model

            return model.read(self.file).config
        if self.directory is None:
            raise UsageError(
                f"{self.name} is not in the cache; fetch it with: gpt2 models pull {self.name}"
            )
        return read_hub_config(self.directory / layout.CONFIG)


def resolve(model: str) -> Source:
    """Find what `model` names, without network. Raises `UsageError` if it names nothing."""
    if not model.strip():
        raise UsageError("the name of the model is empty; use one such as 124M or bard")
    if spec := find_spec(model):
        return _from_spec(spec)
    path = Path(model).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return _from_spec(load_spec(path))
    if path.suffix.lower() == ".gguf":
        return _from_gguf(model, path)
    if path.is_dir():
        if (path / layout.ADAPTER_CONFIG).is_file() and not (path / layout.CONFIG).is_file():
            raise ConfigError(
                f"{path} is no model; name the one that it was made for, and give it as adapter",
                "adapter",
            )
        if not (path / layout.CONFIG).is_file():
            raise ConfigError(f"{path} holds no model: it has no {layout.CONFIG}")
        return Source(model, None, None, path)
    if path.exists():
        raise UsageError(
            f"a model is a directory, a YAML or GGUF file or a name, not a file like {path}"
        )
    if "/" not in model and (hint := did_you_mean(model, known_names())):
        raise UsageError(f"unknown model {model!r}{hint}")
    if not _REPO_ID.fullmatch(model):
        raise UsageError(
            f"unknown model {model!r}; it is no directory, no YAML file and none of "
            f"{', '.join(spec.name for spec in shipped_specs())}"
        )
    return Source(model, None, model, cache.cached_snapshot(model))


def _from_spec(spec: Spec) -> Source:
    if spec.bundled:
        return Source(spec.name, spec, None, BUNDLED_DIR / spec.name)
    cached = cache.cached_snapshot(spec.repo_id) if spec.repo_id else None
    return Source(spec.name, spec, spec.repo_id, cached)


def _from_gguf(name: str, path: Path) -> Source:
    from gpt2cli.weights.gguf import imported

    if not path.is_file():  # a FIFO would block its reader
        raise UsageError(f"there is no file {path}")
    path = path.resolve()
    return Source(name, None, None, imported.directory(path), path)


def fetch(
    source: Source,
    *,
    offline: bool = False,
    update: bool = False,
    vocabulary_only: bool = False,
    progress: Progress | None = None,
) -> Source:
    """Make the files present, from the hub if need be; a cached model needs no network.

    A GGUF file is converted when its weights are first needed.

    `update` asks the hub for a newer revision. `vocabulary_only` skips the weights; fetching
    its result again brings them. Raises `WeightsError` when a config has no
    weights, or weights of another size; `DownloadError` when the hub cannot deliver.
    """
    if source.file:
        from gpt2cli.weights.gguf import imported

        place = imported.convert(source.file, vocabulary_only=vocabulary_only, progress=progress)
        return replace(source, directory=place)
    directory = source.directory
    if source.repo_id:
        directory = cache.cached_snapshot(source.repo_id, vocabulary_only=vocabulary_only)
    if source.repo_id and (directory is None or update):
        from gpt2cli.weights import download

        directory = download.download(
            source.repo_id, offline=offline, vocabulary_only=vocabulary_only, progress=progress
        )
    if directory is None or not directory.is_dir():
        raise WeightsError(
            f"{source.name} is a config without weights: train it with gpt2 train, "
            "or name a repo_id in its YAML file"
        )
    found = Source(source.name, source.spec, source.repo_id, directory)
    if source.spec:
        _check_sizes(source.spec.model, read_hub_config(directory / layout.CONFIG), source.name)
    return found


def _check_sizes(wanted: ModelConfig, found: ModelConfig, name: str) -> None:
    """Raise `WeightsError` if a YAML file does not describe the weights that it names."""
    keys = [f.name for f in fields(ModelConfig) if f.name not in ("drop_rate", "qkv_bias")]
    differing = [
        f"{key} is {getattr(found, key)} instead of {getattr(wanted, key)}"
        for key in keys
        if getattr(found, key) != getattr(wanted, key)
    ]
    if differing:
        raise WeightsError(f"the weights of {name} do not match its config: {'; '.join(differing)}")
