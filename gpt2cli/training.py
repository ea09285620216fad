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
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli import checkpoint, estimate, layout, machine, run_directory
from gpt2cli.config import END_OF_TEXT, ModelConfig, TrainingConfig
from gpt2cli.errors import GPT2CLIError, UsageError, WeightsError
from gpt2cli.model import GPT2
from gpt2cli.run_directory import STATE_FILE, Plan, Position
from gpt2cli.tokenizer import Tokenizer, byte_alphabet

SMALLEST_VOCABULARY = 257  # the bytes and end-of-text


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


def digest_of(train: str, val: str) -> str:
    """Identifies a text and how it is split."""
    return hashlib.sha256(f"{train}\0{val}".encode()).hexdigest()


@contextmanager
def open_run(
    plan: Plan, text: str, directory: Path, *, device: str = "cpu", resume: bool = False
) -> Iterator[Trainer]:
    """Prepare a run in `directory`, or pick one up, and keep others out of it meanwhile.

    A new run learns its vocabulary here, and writes nothing before it has something to keep.
    Raises `UsageError` where a model would be overwritten, the text is too short or another,
    a setting has changed or memory does not suffice, and `WeightsError` where there is nothing
    to resume.
    """
    train, val = split_text(text, plan.training.val_fraction)
    # No token is shorter than a byte, but for the one before the validation text.
    check_length(len(train.encode()), len(val.encode()) + 1, plan.model, "bytes")
    check_memory(replace(plan.model, vocab_size=SMALLEST_VOCABULARY), plan, device)
    if resume:
        run_directory.read_position(directory)
    with run_directory.locked(directory):
        if resume:
            yield _resumed(plan, train, val, directory, device)
        else:
            run_directory.check_directory(directory)
            tokenizer, files = learn_vocabulary(train, plan.model.vocab_size)
            corpus = encode_corpus(tokenizer, train, val)
            yield Trainer(plan, corpus, directory, tokenizer, device=device, unwritten=files)


def _resumed(plan: Plan, train: str, val: str, directory: Path, device: str) -> Trainer:
    position = run_directory.read_position(directory)
    position.check_goes_on_as(plan)
    if digest_of(train, val) != position.digest:
        raise UsageError(
            f"the text is not the one that the run in {directory} began with; resume with that, "
            "or train anew in another directory"
        )
    tokenizer = Tokenizer.load(directory)
    corpus = encode_corpus(tokenizer, train, val)
    trainer = Trainer(plan, corpus, directory, tokenizer, device=device)
    trainer.load_state(position)
    return trainer


def check_length(train: int, val: int, config: ModelConfig, unit: str = "tokens") -> None:
    """Refuse a text with too few tokens, or bytes, for one window. Raises `UsageError`."""
    for name, length in (("training", train), ("validation", val)):
        if length < config.context_length + 2:
            raise UsageError(
                f"the {name} text has only {length} {unit}; a context of "
                f"{config.context_length} needs more. Use a longer text or a shorter context"
            )


def check_memory(config: ModelConfig, plan: Plan, device: str) -> None:
    """Refuse a run that cannot fit. Raises `UsageError`."""
    batch_size, context = plan.training.batch_size, config.context_length
    needed = estimate.training_bytes(config, batch_size, plan.dtype)
    on_gpu = device.startswith("cuda")
    available = machine.detect().memory_available if on_gpu else machine.memory()[1]
    # Gradients come as activations go: 124M in fp32 was measured at 0.95 of the estimate.
    if 0.9 * needed > available:
        raise UsageError(
            f"batch_size {batch_size} with a context of {context} tokens needs "
            f"{needed / 1e9:,.1f} GB of memory and {available / 1e9:,.1f} GB are free; choose a "
            "smaller batch, context or model",
            "batch_size",
        )


def learn_vocabulary(text: str, vocab_size: int) -> tuple[Tokenizer, dict[str, str]]:
    """Learn a byte-level BPE; with it come its files by name, `vocab.json` and `merges.txt`.

    A short text may not have enough pairs to fill `vocab_size`. Raises `UsageError` when
    `vocab_size` does not even hold the 256 bytes and the end-of-text token.
    """
    from tokenizers import ByteLevelBPETokenizer

    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and {END_OF_TEXT})"
        )
    # Every merge joins what the text has; the library makes room for all that it is asked for.
    most = SMALLEST_VOCABULARY + len(text.encode())
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [text],
        vocab_size=min(vocab_size, most),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    learned = json.loads(trainer.to_str())["model"]
    ids: dict[str, int] = learned["vocab"]
    merges = "".join(f"{left} {right}\n" for left, right in learned["merges"])
    end_of_text = {END_OF_TEXT: ids[END_OF_TEXT]}
    alphabet = byte_alphabet()
    ranks = {
        bytes(alphabet[c] for c in token): i for token, i in ids.items() if token != END_OF_TEXT
    }
    vocab = json.dumps(ids, ensure_ascii=False, separators=(",", ":"))
    contents = (vocab, f"#version: 0.2\n{merges}")
    return Tokenizer(ranks, end_of_text), dict(zip(layout.VOCABULARY, contents, strict=True))


def write_vocabulary(files: Mapping[str, str], directory: Path) -> None:
    """Write what `learn_vocabulary` gave. Raises `WeightsError` where that fails."""
    for name, content in files.items():
        checkpoint.write_text(content, directory / name)


def train_vocabulary(text: str, vocab_size: int, directory: Path) -> Tokenizer:
    """Learn a vocabulary and write it."""
    tokenizer, files = learn_vocabulary(text, vocab_size)
    write_vocabulary(files, directory)
    return tokenizer


def encode_corpus(tokenizer: Tokenizer, train: str, val: str) -> Corpus:
    """Tokenise both parts of a text."""
    train_ids = tokenizer.encode(train)
    val_ids = tokenizer.encode(val)
    return Corpus(
        train=torch.tensor(train_ids, dtype=torch.long),
        val=torch.tensor(train_ids[-1:] + val_ids, dtype=torch.long),
        val_bytes=len(val.encode("utf-8")),
        digest=digest_of(train, val),
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
        plan: Plan,
        corpus: Corpus,
        directory: Path,
        tokenizer: Tokenizer,
        *,
        device: str = "cpu",
        unwritten: Mapping[str, str] | None = None,
    ) -> None:
        """`unwritten` are files that go into the directory with the first thing saved."""
        self.config = replace(plan.model, vocab_size=tokenizer.size)
        check_length(len(corpus.train), len(corpus.val), self.config)
        check_memory(self.config, plan, device)
        self.plan, self.settings, self.corpus = plan, plan.training, corpus
        self.directory, self.end_of_text = directory, tokenizer.end_of_text or 0
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.model = GPT2(self.config).init_weights(generator).to(self.device)
        self.optimizer = make_optimizer(self.model, self.settings)
        self.step = 0
        self.best_val_loss = math.inf
        self._unwritten = dict(unwritten or {})
        self._saved_step: int | None = None

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train until `settings.steps`, yielding a `Report` a step.

        `should_stop` is asked between steps; the state is saved either way. Raises
        `GPT2CLIError` as soon as a number is not finite, before that has reached a file.
        """
        self.model.train()
        while self.step < self.settings.steps and not should_stop():
            started = time.perf_counter()
            loss = self._optimise()
            self.step += 1
            if not math.isfinite(loss):
                raise self._diverged()
            tokens = self.settings.batch_size * self.config.context_length
            speed = tokens / (time.perf_counter() - started)
            rate = self.optimizer.param_groups[0]["lr"]
            last = self.step == self.settings.steps
            if self.step % self.settings.eval_interval == 0 or last:
                yield self._validate(loss, rate, speed)
            else:
                yield Report(self.step, loss, rate, speed)
        if self.step != self._saved_step:
            self._save()

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
        if self.plan.dtype != "bfloat16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _validate(self, loss: float, rate: float, speed: float) -> Report:
        # Not more at once than a training step has room for.
        val_loss = evaluate(self.model, self.corpus.val, min(32, self.settings.batch_size))
        if not math.isfinite(val_loss):
            raise self._diverged()
        best = self._save(val_loss)
        bits = val_loss * (len(self.corpus.val) - 1) / math.log(2) / self.corpus.val_bytes
        return Report(self.step, loss, rate, speed, val_loss, bits, best)

    def _diverged(self) -> GPT2CLIError:
        """What to raise where numbers are not finite any more."""
        if self._saved_step is None:
            kept, remedy = "nothing was saved", "try a lower learning_rate"
        else:
            model = "the best model and " if math.isfinite(self.best_val_loss) else ""
            kept = f"{self.directory} keeps {model}the state of step {self._saved_step}"
            remedy = "train anew in another directory with a lower learning_rate"
        return GPT2CLIError(
            f"training diverged: the loss is not finite at step {self.step}; {kept}; {remedy}",
            "learning_rate",
        )

    def _save(self, val_loss: float = math.inf) -> bool:
        """Write the state, and before it the model if its loss is the lowest so far; if it is.

        In this order whatever a kill leaves can be resumed, for it repeats what is missing.
        """
        tensors = self._state()
        # A loss is from before its step's update, so it does not vouch for what that made.
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise self._diverged()
        best = val_loss < self.best_val_loss
        lowest = min(val_loss, self.best_val_loss)
        position = Position(self.plan, self.corpus.digest, self.step, lowest)
        with self._all_or_nothing():
            write_vocabulary(self._unwritten, self.directory)
            if best:
                save_dtype = getattr(torch, self.plan.save_dtype)
                checkpoint.save(self.model, self.directory, self.end_of_text, save_dtype)
            checkpoint.write_safetensors(tensors, self.directory / STATE_FILE, position.metadata())
        self._unwritten, self._saved_step, self.best_val_loss = {}, self.step, lowest
        return best

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Delete what a run has written whose very first save fails: it can then begin again."""
        try:
            yield
        except WeightsError:
            if self._saved_step is None:
                for name in (*self._unwritten, layout.CONFIG, layout.WEIGHTS):
                    (self.directory / name).unlink(missing_ok=True)
            raise

    def _state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        tensors = {}
        for name, p in self.model.named_parameters():
            tensors[f"weight.{name}"] = p.detach()
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load_state(self, position: Position) -> None:
        """Continue where a run was saved. Raises `WeightsError` for a damaged state."""
        path = self.directory / STATE_FILE
        tensors, _ = checkpoint.read_safetensors(path)
        wanted = {f"weight.{name}": p for name, p in self.model.named_parameters()}
        if any(n not in tensors or tensors[n].shape != p.shape for n, p in wanted.items()):
            raise WeightsError(f"{path} is damaged; it does not hold this model")
        for name, p in self.model.named_parameters():
            p.data.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:
                self.optimizer.state[p] = {
                    key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.step = self._saved_step = position.step
        self.best_val_loss = position.best_val_loss
