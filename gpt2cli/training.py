"""Training a GPT-2 from scratch on one machine: vocabulary, data, optimiser, loop.

`Trainer.run` yields what happened and never prints; `gpt2cli.cli.train` draws it.
Recipe: GPT-2 and GPT-3 papers (Radford et al. 2019; Brown et al. 2020, arXiv:2005.14165,
appendix B), with AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

Every step draws its batch and its dropout from (seed, step) alone, so a run that is
stopped and resumed is, number for number, the run that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli import checkpoint, layout
from gpt2cli.config import END_OF_TEXT, ModelConfig, Spec, TrainingConfig
from gpt2cli.device import Placement
from gpt2cli.errors import UsageError, WeightsError
from gpt2cli.model import GPT2
from gpt2cli.tokenizer import Tokenizer

STATE_FILE = "training_state.safetensors"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as token ids: the first part to learn from, the rest to be judged by.

    `val` begins with the last training token, so that each of its own tokens is predicted
    once; `val_bytes` is the UTF-8 length of what is predicted. `digest` identifies the text.
    """

    train: Tensor
    val: Tensor
    val_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Report:
    """The state after one optimiser step; the validation figures only when just measured.

    `loss` is in nats a token, `bits_per_byte` compares models with different vocabularies.
    """

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    val_loss: float | None = None
    bits_per_byte: float | None = None
    best: bool = False


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """Cut a text by bytes: the last `val_fraction` of it is for validation."""
    data = text.encode("utf-8")
    cut = len(data) - int(len(data) * val_fraction)
    while cut < len(data) and data[cut] & 0xC0 == 0x80:  # not inside a character
        cut += 1
    return data[:cut].decode("utf-8"), data[cut:].decode("utf-8")


def open_run(
    spec: Spec,
    text: str,
    directory: Path,
    *,
    resume: bool = False,
    placement: Placement,
    save_dtype: torch.dtype = torch.float32,
) -> Trainer:
    """Prepare a run in `directory`: learn the vocabulary and encode the text, or pick it up.

    Raises `UsageError` where a model would be overwritten, or the text is too short, and
    `WeightsError` where there is nothing to resume.
    """
    state = directory / STATE_FILE
    if resume and not state.is_file():
        raise WeightsError(f"nothing to resume: there is no {state}")
    if resume:
        tokenizer = Tokenizer.load(directory)
    elif (directory / layout.WEIGHTS).exists() or state.exists():
        raise UsageError(f"{directory} already holds a model; add --resume or choose another --out")
    train, val = split_text(text, spec.training.val_fraction)
    if not resume:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer = train_vocabulary(train, spec.model.vocab_size, directory)
    trainer = Trainer(
        replace(spec.model, vocab_size=tokenizer.size),
        spec.training,
        encode_corpus(tokenizer, train, val),
        directory,
        end_of_text=tokenizer.end_of_text or 0,
        device=placement.device,
        autocast=placement.dtype == "bfloat16",
        save_dtype=save_dtype,
    )
    if resume:
        trainer.load_state()
    return trainer


def train_vocabulary(text: str, vocab_size: int, directory: Path) -> Tokenizer:
    """Learn a byte-level BPE and write it as `vocab.json` and `merges.txt`.

    A short text may not have enough pairs to fill `vocab_size`. Raises `UsageError` when
    `vocab_size` does not even hold the 256 bytes and the end-of-text token.
    """
    from tokenizers import ByteLevelBPETokenizer

    if vocab_size < 257:
        raise UsageError(f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT})")
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [text], vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False
    )
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        trainer.save_model(temporary)
        for name in layout.VOCABULARY:
            os.replace(Path(temporary) / name, directory / name)
    return Tokenizer.load(directory)


def encode_corpus(tokenizer: Tokenizer, train: str, val: str) -> Corpus:
    """Tokenise both parts of a text."""
    train_ids = tokenizer.encode(train)
    val_ids = tokenizer.encode(val)
    digest = hashlib.sha256(f"{train}\0{val}".encode()).hexdigest()
    return Corpus(
        train=torch.tensor(train_ids, dtype=torch.long),
        val=torch.tensor(train_ids[-1:] + val_ids, dtype=torch.long),
        val_bytes=len(val.encode("utf-8")),
        digest=digest,
    )


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to the minimum at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    span = max(1, settings.steps - 1 - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    height = settings.learning_rate - settings.min_learning_rate
    return settings.min_learning_rate + height * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: GPT2, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


@torch.no_grad()
def evaluate(model: GPT2, ids: Tensor, batch_size: int = 32) -> float:
    """Mean loss in nats over `ids[1:]`, read in windows of one context that do not overlap.

    A token early in its window sees little, so this is the pessimistic figure.
    """
    device = next(model.parameters()).device
    context, total = model.config.context_length, 0.0
    was_training = model.training
    model.eval()
    starts = list(range(0, len(ids) - 1, context))
    whole = [s for s in starts if s + context < len(ids)]
    groups = [whole[i : i + batch_size] for i in range(0, len(whole), batch_size)]
    groups += [[s] for s in starts[len(whole) :]]  # the last window is shorter
    for group in groups:
        rows = torch.stack([ids[s : s + context + 1] for s in group]).to(device)
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum")
        total += loss.item()
    model.train(was_training)
    return total / (len(ids) - 1)


class Trainer:
    """One training run that writes to `directory`.

    There it keeps the best model so far (by validation loss; loadable by this tool and by
    transformers) and the full state to resume from.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: TrainingConfig,
        corpus: Corpus,
        directory: Path,
        *,
        end_of_text: int,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        save_dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, ids in (("training", corpus.train), ("validation", corpus.val)):
            if len(ids) < config.context_length + 2:
                raise UsageError(
                    f"the {name} text has only {len(ids)} tokens; a context of "
                    f"{config.context_length} needs more. Use a longer text or a shorter context"
                )
        self.config, self.settings, self.corpus = config, settings, corpus
        self.directory, self.end_of_text, self.save_dtype = directory, end_of_text, save_dtype
        self.device = torch.device(device)
        self.autocast = autocast
        generator = torch.Generator().manual_seed(settings.seed)
        self.model = GPT2(config).init_weights(generator).to(self.device)
        self.optimizer = make_optimizer(self.model, settings)
        self.step = 0
        self.best_val_loss = math.inf

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train until `settings.steps`, yielding a `Report` a step.

        `should_stop` is asked between steps; the state is saved either way.
        """
        self.model.train()
        while self.step < self.settings.steps and not should_stop():
            started = time.perf_counter()
            loss = self._optimise()
            self.step += 1
            tokens = self.settings.batch_size * self.config.context_length
            speed = tokens / (time.perf_counter() - started)
            rate = self.optimizer.param_groups[0]["lr"]
            last = self.step == self.settings.steps
            if self.step % self.settings.eval_interval == 0 or last:
                yield self._validate(loss, rate, speed)
            else:
                yield Report(self.step, loss, rate, speed)
        self.save_state()

    def _optimise(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimizer.zero_grad(set_to_none=True)  # before memory is needed for activations
        ids = self._batch().to(self.device)  # (B, T + 1)
        with self._precision():
            logits = self.model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return loss.item()

    def _batch(self) -> Tensor:
        """Random windows of the training text, and the dropout seed of this step."""
        seeds = np.random.SeedSequence([self.settings.seed, self.step])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        T = self.config.context_length
        starts = np.random.default_rng(seeds).integers(
            0, len(self.corpus.train) - T, self.settings.batch_size
        )
        return torch.stack([self.corpus.train[s : s + T + 1] for s in starts.tolist()])

    def _precision(self) -> AbstractContextManager[object]:
        if not self.autocast:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _validate(self, loss: float, rate: float, speed: float) -> Report:
        val_loss = evaluate(self.model, self.corpus.val)
        best = val_loss < self.best_val_loss
        if best:
            self.best_val_loss = val_loss
            checkpoint.save(self.model, self.directory, self.end_of_text, self.save_dtype)
        self.save_state()
        bits = val_loss * (len(self.corpus.val) - 1) / math.log(2) / self.corpus.val_bytes
        return Report(self.step, loss, rate, speed, val_loss, bits, best)

    def _identity(self) -> str:
        """What must be the same for a resumed run to be the same run."""
        return json.dumps([asdict(self.config), asdict(self.settings), self.corpus.digest])

    def save_state(self) -> None:
        """Write weights, moments and position, all in one file, atomically."""
        tensors = {}
        for name, p in self.model.named_parameters():
            tensors[f"weight.{name}"] = p.detach()
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        metadata = {
            "step": str(self.step),
            "best_val_loss": self.best_val_loss.hex(),
            "identity": self._identity(),
        }
        checkpoint.write_safetensors(tensors, self.directory / STATE_FILE, metadata)

    def load_state(self) -> None:
        """Continue where `save_state` left off.

        Raises `WeightsError` for a damaged state, `UsageError` if it is of another run.
        """
        path = self.directory / STATE_FILE
        tensors, metadata = checkpoint.read_safetensors(path)
        if metadata.get("identity") != self._identity():
            raise UsageError(
                f"{path} is from a run with another config, setting or text; "
                "repeat its command exactly, adding only --resume"
            )
        for name, p in self.model.named_parameters():
            p.data.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:
                self.optimizer.state[p] = {
                    key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.step = int(metadata["step"])
        self.best_val_loss = float.fromhex(metadata["best_val_loss"])
