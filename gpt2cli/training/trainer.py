"""Training a GPT-2 from scratch on one machine: vocabulary, data, optimiser, loop.

`Trainer.run` yields reports and never prints; `gpt2cli.cli.commands.train` draws it.
Recipe: GPT-2 and GPT-3 papers (Radford et al. 2019; Brown et al. 2020, arXiv:2005.14165,
appendix B), with AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

Every step draws its batch and its dropout from (seed, step) alone, so a run that is
stopped and resumed is, number for number, the run that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system.precision import torch_name
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import Corpus, write_vocabulary
from gpt2cli.training.optimizer import learning_rate, make_optimizer
from gpt2cli.training.state import STATE_FILE, Plan, Position
from gpt2cli.weights import checkpoint, layout
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors


@dataclass(frozen=True, slots=True)
class Report:
    """The state after one optimiser step; the validation figures only when just measured.

    `loss` is in nats per token, `bits_per_byte` compares models with different vocabularies.
    """

    step: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    val_loss: float | None = None
    bits_per_byte: float | None = None
    best: bool = False


@torch.no_grad()
def evaluate(model: GPT2, ids: Tensor, batch_size: int = 32) -> float:
    """Mean loss in nats over `ids[1:]`, read in windows of one context that do not overlap.

    A token early in its window has little context, so this overestimates the loss.
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
    """One run that trains a model on a corpus and writes to `directory`.

    There it keeps the best model so far (by validation loss; loadable by this tool and by
    transformers) and the full state to resume from.
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        corpus: Corpus,
        plan: Plan,
        directory: Path,
        *,
        unwritten: Mapping[str, str] | None = None,
    ) -> None:
        """`unwritten` are files that go into the directory with the first thing saved."""
        self.model, self.corpus, self.directory = model, corpus, directory
        self.config, self.plan, self.settings = model.config, plan, plan.training
        self.device = model.token_embedding.weight.device
        self.optimizer = make_optimizer(model, self.settings)
        self.step = 0
        self.best_val_loss = math.inf
        self._end_of_text = tokenizer.end_of_text or 0
        self._unwritten = dict(unwritten or {})
        self._saved_step: int | None = None

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train until `settings.steps`, yielding a `Report` per step.

        `should_stop` is asked between steps; the state is saved either way. Raises
        `GPT2CLIError` as soon as a number is not finite, before it is written to a file.
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
        if self.plan.precision != "bf16":
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
        """The error for numbers that are not finite any more."""
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
        """Write the model if its loss is the lowest so far, then the state. → whether it was lowest

        In this order a killed run can always be resumed: it repeats what is missing.
        """
        tensors = self._state()
        # A loss is from before its step's update, so a finite loss does not imply finite weights.
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise self._diverged()
        best = val_loss < self.best_val_loss
        lowest = min(val_loss, self.best_val_loss)
        position = Position(self.plan, self.corpus.digest, self.step, lowest)
        with self._all_or_nothing():
            write_vocabulary(self._unwritten, self.directory)
            if best:
                dtype = getattr(torch, torch_name(self.plan.save_precision))
                checkpoint.save(self.model, self.directory, self._end_of_text, dtype)
            write_safetensors(tensors, self.directory / STATE_FILE, position.metadata())
        self._unwritten, self._saved_step, self.best_val_loss = {}, self.step, lowest
        return best

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Delete what was written if the first save of a run fails, so that it can begin again."""
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
        tensors, _ = read_safetensors(path)
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
