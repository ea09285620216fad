"""What a training run keeps in its directory besides the model: lock, plan, position.

The full state is one safetensors file, which `training` writes; this module reads the metadata
in its header, without torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2cli.config.fields import build
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import TrainingConfig
from gpt2cli.errors import GPT2CLIError, UsageError, WeightsError
from gpt2cli.system.precision import parse
from gpt2cli.text.vocabulary import VOCABULARIES
from gpt2cli.weights import layout
from gpt2cli.weights.safetensors import read_metadata

STATE_FILE = "training_state.safetensors"
_LOCK = ".training.lock"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: the same plan and the same text give the same model.

    `model.vocab_size` is what was asked for; a short text may have given less. `precision` is what
    products are computed in, `save_precision` what the model is stored in. `data` only says where
    the text was. These three are empty where they are not known.
    """

    model: ModelConfig
    training: TrainingConfig
    precision: str = "fp32"
    save_precision: str = "fp32"
    data: str = ""

    def check_same(self, other: Plan) -> None:
        """Raise `UsageError`, naming the setting, if a setting of `other` differs.

        The number of steps may differ, and the path of the text.
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
        own = {"precision": self.precision, "save_precision": self.save_precision}
        same = asdict(self.model) | asdict(self.training) | own
        del same["steps"]
        return same


@dataclass(frozen=True, slots=True)
class Position:
    """The progress of a run when its state was saved. `digest` identifies its text."""

    plan: Plan
    digest: str
    step: int
    best_val_loss: float = math.inf

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
        plan, digest = _read_plan(metadata, str(path))
        step, best = int(metadata["step"]), float.fromhex(metadata["best_val_loss"])
        return Position(plan, digest, step, best)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, UsageError):
        raise WeightsError(f"{path} is damaged; it does not say what the run was") from None


def _read_plan(metadata: dict[str, str], source: str) -> tuple[Plan, str]:
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
    plan = Plan(
        build(ModelConfig, noted["model"], source),
        build(TrainingConfig, noted["training"], source),
        precision,
        save_precision,
        str(noted.get("data", "")),
    )
    return plan, str(digest)


def check_directory(directory: Path) -> None:
    """Raise `UsageError` if a directory already holds a model or a vocabulary."""
    for name in (STATE_FILE, layout.WEIGHTS, layout.INDEX):
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
