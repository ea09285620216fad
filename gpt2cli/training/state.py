"""What a training run keeps in its directory besides the model: lock, plan, position.

The full state is one safetensors file, which `training` writes; this module reads the metadata
in its header, without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gpt2cli.config.fields import build
from gpt2cli.config.lora import LoraConfig
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import read_yaml
from gpt2cli.config.training import DataConfig, TrainingConfig
from gpt2cli.errors import ConfigError, GPT2CLIError, UsageError, WeightsError
from gpt2cli.system.precision import parse
from gpt2cli.text.vocabulary import VOCABULARIES
from gpt2cli.weights import layout
from gpt2cli.weights.safetensors import read_metadata

STATE_FILE = "training_state.safetensors"
RUN_FILE = "run.yaml"
_LOCK = ".training.lock"


# What may be another when a run goes on: how long it takes, and what gives the same numbers.
_FREE = ("steps", "epochs", "patience", "micro_batch_size", "activation_checkpointing", "compile")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: the same plan and the same text give the same model.

    `model.vocab_size` is what was asked for; a short text may have given less. `precision` is what
    products are computed in, `save_precision` what the model is stored in; both are empty where
    they are not known. `base` names the model to begin with, none for one of random weights, and
    with `lora` an adapter of it is trained.
    """

    model: ModelConfig
    training: TrainingConfig
    precision: str = "fp32"
    save_precision: str = "fp32"
    data: DataConfig = field(default_factory=DataConfig)
    base: str = ""
    lora: LoraConfig | None = None

    def check_same(self, other: Plan) -> None:
        """Raise `UsageError`, naming the setting, if a setting of `other` differs.

        What does not change the steps so far may differ, and the names of the files.
        """
        before, now = self._settings(), other._settings()
        # Versions that did not record the precisions recorded the vocabulary's actual size.
        unknown = () if self.precision else ("vocab_size", "precision", "save_precision")
        for name in before:
            if before[name] != now[name] and name not in unknown:
                raise UsageError(
                    f"{name} was {before[name]} when this run began and cannot become "
                    f"{now[name]}; leave it as it was, or train anew in another directory",
                    name,
                )

    def _settings(self) -> dict[str, object]:
        same = asdict(self.model) | asdict(self.training)
        same |= {f.name: getattr(self.lora, f.name, None) for f in fields(LoraConfig)}
        same |= {name: getattr(self, name) for name in ("base", "precision", "save_precision")}
        same |= {"mask_prompts": self.data.mask_prompts}
        return {name: value for name, value in same.items() if name not in _FREE}


@dataclass(frozen=True, slots=True)
class Position:
    """The progress of a run when its state was saved. `digest` identifies its text.

    `stale` counts the validations since the best one. `report` is what was about to be told of this
    step, as plain data: a kill may have come between.
    """

    plan: Plan
    digest: str
    step: int
    best_val_loss: float = math.inf
    stale: int = 0
    report: dict[str, Any] | None = None

    @property
    def ended_early(self) -> bool:
        """Whether validation has not improved for as long as the plan is patient."""
        patience = self.plan.training.patience
        return patience is not None and self.stale >= patience

    def check_goes_on_as(self, plan: Plan) -> None:
        """Raise `UsageError` if the run cannot continue with this plan."""
        self.plan.check_same(plan)
        if plan.training.steps < self.step:
            raise UsageError(f"steps must be at least the {self.step} that are done", "steps")
        if plan.training.steps == self.step and math.isinf(self.best_val_loss):
            raise UsageError(
                f"steps must be more than the {self.step} that are done, which left no model yet",
                "steps",
            )

    def metadata(self) -> dict[str, str]:
        """The position for the header of a safetensors file, whose values must be text."""
        return {
            "plan": json.dumps(asdict(self.plan)),
            "digest": self.digest,
            "step": str(self.step),
            "best_val_loss": self.best_val_loss.hex(),
            "stale": str(self.stale),
            "report": json.dumps(self.report),
        }


def read_position(directory: Path) -> Position:
    """The saved position of the run in a directory.

    Raises `WeightsError` where there is none, or its file is damaged.
    """
    path = directory / STATE_FILE
    if not path.is_file():
        raise WeightsError(f"nothing to resume: there is no {path}")
    metadata = read_metadata(path)
    try:
        plan, digest = _recorded(metadata, str(path))
        step, best = int(metadata["step"]), float.fromhex(metadata["best_val_loss"])
        stale, report = int(metadata.get("stale", 0)), json.loads(metadata.get("report", "null"))
        return Position(plan, digest, step, best, stale, report)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, UsageError):
        raise WeightsError(f"{path} is damaged; it does not say what the run was") from None


def _recorded(metadata: dict[str, str], source: str) -> tuple[Plan, str]:
    if "plan" in metadata:
        noted, digest = json.loads(metadata["plan"]), metadata["digest"]
    else:  # by a version that recorded less
        model, training, digest = json.loads(metadata["identity"])
        noted = {"model": model, "training": training}
    # An earlier version called precisions dtypes, by PyTorch's names.
    precision, save_precision = (
        parse(name) if (name := str(noted.get(new, noted.get(old, "")))) else ""
        for new, old in (("precision", "dtype"), ("save_precision", "save_dtype"))
    )
    if isinstance(text := noted.get("data"), str):  # by a version that had one text
        noted["data"] = {"files": [text] if text else []}
    names = {"precision": precision, "save_precision": save_precision}
    return _built({**noted, **names}, source), str(digest)


def _built(noted: Mapping[str, Any], source: str) -> Plan:
    """A plan from plain data. Raises `ConfigError`, or others for what is nothing like a plan."""
    lora = noted.get("lora")
    return Plan(
        build(ModelConfig, noted["model"], source),
        build(TrainingConfig, noted["training"], source),
        str(noted["precision"]),
        str(noted["save_precision"]),
        build(DataConfig, noted.get("data", {}), source),
        str(noted.get("base", "")),
        None if lora is None else build(LoraConfig, lora, source),
    )


_TITLE = """\
# A run of gpt2 train, with every setting that it was given or chose. To repeat it:
# gpt2 train --run THIS-FILE --out ANOTHER-DIRECTORY
"""


def to_yaml(plan: Plan) -> str:
    """A plan as a file that people may read and change, and `read_plan` reads."""
    import yaml

    plain = json.loads(json.dumps(asdict(plan)))  # without tuples
    return _TITLE + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def read_plan(path: Path) -> Plan:
    """The plan in a file that a run has written. Raises `ConfigError` for any other."""
    data = read_yaml(path)
    try:
        return _built(data, path.name)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise ConfigError(f"{path} does not hold a run; a run writes {RUN_FILE}") from None


def check_directory(directory: Path) -> None:
    """Raise `UsageError` if a directory already holds a model, an adapter or a vocabulary."""
    for name in (STATE_FILE, layout.WEIGHTS, layout.INDEX, layout.ADAPTER_WEIGHTS):
        if (directory / name).exists():
            hint = ", or resume its run" if name == STATE_FILE else ""
            raise UsageError(f"{directory} already holds a model; choose another directory{hint}")
    for names in VOCABULARIES:
        for name in names:
            if (directory / name).exists():
                raise UsageError(
                    f"{directory} already holds a vocabulary without a model, {name}; choose "
                    "another directory, or delete it if nothing needs it"
                )


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and lock it against other runs; the lock of a killed process is void.

    Raises `UsageError` where it cannot be made or written to, `GPT2CLIError` while another
    run is in it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / _LOCK, timeout=0)
    try:
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory} is a file, not a directory")
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise GPT2CLIError(
            f"another run is training in {directory}; wait for its end, or choose another directory"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write a model into {directory} ({error.strerror}); choose another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()
