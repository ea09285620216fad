"""Training a GPT-2: batches, gradients, optimiser, loop.

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
from torch import Tensor

from gpt2cli.arrays import NDArray
from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import lora_layers
from gpt2cli.system.precision import torch_name
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import adapters
from gpt2cli.training.corpus import Corpus
from gpt2cli.training.loss import summed_loss
from gpt2cli.training.optimizer import learning_rate, make_optimizer
from gpt2cli.training.packing import Batch, Rows
from gpt2cli.training.state import STATE_FILE, Plan, Position
from gpt2cli.weights import adapter, checkpoint, layout, sources
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors, write_text

# Reading a loss waits for a GPU, which then waits for its next step: it is read every so often.
_READ_EVERY = {"cpu": 1}
_READ_EVERY_ON_GPU = 10


@dataclass(frozen=True, slots=True)
class Report:
    """The state after an optimiser step; the validation figures only when just measured.

    `loss` is in nats per token, the mean since the last report, and None before the first step.
    `bits_per_byte` compares models with different vocabularies.
    """

    step: int
    loss: float | None
    learning_rate: float
    tokens_per_second: float
    val_loss: float | None = None
    bits_per_byte: float | None = None
    best: bool = False


def summed(model: GPT2, batch: Batch) -> Tensor:
    """The sum of the losses, in nats, of all tokens of a batch that are to be learned. → ()"""
    device = model.token_embedding.weight.device
    ids = _on(device, batch.ids)  # (B, T + 1)
    segments = None if batch.segments is None else _on(device, batch.segments)
    mask = None if batch.mask is None else torch.from_numpy(batch.mask)
    hidden = model.hidden(ids[:, :-1], segments=segments)
    return summed_loss(hidden, model.token_embedding.weight, ids[:, 1:], mask)[0]


def _on(device: torch.device, array: NDArray) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # copied while the host goes on
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@torch.no_grad()
def evaluate(model: GPT2, rows: Rows, batch_size: int = 32) -> float:
    """Mean loss in nats over all tokens to be learned of some rows.

    A token early in its window has little context, so this overestimates the loss.
    """
    was_training = model.training
    model.eval()
    starts = range(0, len(rows), batch_size)
    batches = (rows.batch(range(s, min(s + batch_size, len(rows)))) for s in starts)
    total = sum(summed(model, batch).double() for batch in batches)
    model.train(was_training)
    return float(total) / int(rows.targets.sum())


class Trainer:
    """One run that trains a model on a corpus and writes to `directory`.

    There it keeps the best model so far, or its adapter (by validation loss; loadable by this
    tool, transformers and PEFT), and the full state to resume from.
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
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.directory, self.config = directory, model.config
        self.plan, self.settings = plan, plan.training
        self.device = model.token_embedding.weight.device
        self.optimizer = make_optimizer(model, self.settings)
        self.step = 0
        self.best_val_loss = math.inf
        self.stale = 0
        self._unwritten = dict(unwritten or {})
        self._saved_step: int | None = None

    @property
    def position(self) -> Position:
        """How far the run is."""
        return Position(self.plan, self.corpus.digest, self.step, self.best_val_loss, self.stale)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or validation has not improved for too long."""
        return self.step >= self.settings.steps or self.position.ended_early

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train until `settings.steps`, yielding a `Report` per step, on a GPU per ten.

        A model that is given is first validated as it is. `should_stop` is asked between steps;
        the state is saved either way. Raises `GPT2CLIError` as soon as a number is not finite,
        before it is written to a file.
        """
        if self.plan.base and self.step == 0:
            yield Report(0, None, 0.0, 0.0, *self._validation())
        self.model.train()
        interval = _READ_EVERY.get(self.device.type, _READ_EVERY_ON_GPU)
        losses: list[Tensor] = []
        targets, started = 0, time.perf_counter()
        while not self.finished and not should_stop():
            targets += self.corpus.batches.targets(self.step)
            losses.append(self._optimise())
            self.step += 1
            validates = self.step % self.settings.eval_interval == 0
            if validates or self.step % interval == 0 or self.step == self.settings.steps:
                loss = torch.stack(losses).mean().item()
                if not math.isfinite(loss):
                    raise self._diverged()
                speed = targets / (time.perf_counter() - started)
                yield self._report(loss, speed)
                losses, targets, started = [], 0, time.perf_counter()
        if self.step != self._saved_step and self.step:
            self._save()

    def _report(self, loss: float, speed: float) -> Report:
        rate = float(self.optimizer.param_groups[0]["lr"])
        last = self.step == self.settings.steps
        if self.step % self.settings.eval_interval and not last:
            return Report(self.step, loss, rate, speed)
        val_loss, bits = self._validation()
        return Report(self.step, loss, rate, speed, val_loss, bits, self._save(val_loss))

    def _optimise(self) -> Tensor:
        """One step: the gradient of the mean loss of its tokens, and the update. → the loss ()

        The mean is over all tokens of the step, however many are computed at once.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        self.optimizer.zero_grad(set_to_none=True)  # before memory is needed for activations
        seeds = np.random.SeedSequence([self.settings.seed, self.step])
        torch.manual_seed(int(seeds.generate_state(1)[0]))  # of dropout
        targets = self.corpus.batches.targets(self.step)
        total = torch.zeros((), device=self.device)
        for batch in self.corpus.batches.batch(self.step).micro(self.settings.micro_batch):
            with self._precision():
                loss = summed(self.model, batch) / targets
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return total

    def _precision(self) -> AbstractContextManager[object]:
        if self.plan.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _validation(self) -> tuple[float, float]:
        """The loss of the text held out, in nats per token and in bits per byte."""
        rows = self.corpus.validation
        # Not more at once than a training step has room for.
        with self._precision():
            loss = evaluate(self.model, rows, min(32, self.settings.micro_batch))
        if not math.isfinite(loss):
            raise self._diverged()
        nats = loss * int(rows.targets.sum())
        return loss, nats / math.log(2) / self.corpus.validation_bytes

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

    def _save(self, val_loss: float | None = None) -> bool:
        """Write the model if its loss is the lowest so far, then the state. → whether it was lowest

        In this order a killed run can always be resumed: it repeats what is missing.
        """
        tensors = self._state()
        # A loss is from before its step's update, so a finite loss does not imply finite weights.
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise self._diverged()
        best = val_loss is not None and val_loss < self.best_val_loss
        if val_loss is not None:
            self.stale = 0 if best else self.stale + 1
            self.best_val_loss = min(val_loss, self.best_val_loss)
        with self._all_or_nothing():
            for name, content in self._unwritten.items():
                write_text(content, self.directory / name)
            if best:
                self._save_model()
            write_safetensors(tensors, self.directory / STATE_FILE, self.position.metadata())
        self._unwritten, self._saved_step = {}, self.step
        return best

    def _save_model(self) -> None:
        if (lora := self.plan.lora) is not None:
            source = sources.resolve(self.plan.base)
            base = source.repo_id or str(source.directory)
            found = adapters.from_model(self.model, dropout=lora.dropout, base=base)
            adapter.write(found, self.directory, self.config)
        else:
            dtype = getattr(torch, torch_name(self.plan.save_precision))
            checkpoint.save(self.model, self.directory, self.tokenizer.end_of_text or 0, dtype)

    def load_best(self) -> None:
        """Put the best weights, which the directory holds, in the place of the last ones."""
        if self.plan.lora is not None:
            found = adapter.read(self.directory, self.config)
            for name, layer in lora_layers(self.model):
                layer.a.data.copy_(torch.from_numpy(found.updates[name].a))
                layer.b.data.copy_(torch.from_numpy(found.updates[name].b))
        else:
            _, tensors = checkpoint.read(self.directory)
            for name, p in self.model.named_parameters():
                p.data.copy_(tensors[name].to_torch(self.device, p.dtype))

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Delete what was written if the first save of a run fails, so that it can begin again."""
        try:
            yield
        except WeightsError:
            if self._saved_step is None:
                model = (layout.CONFIG, layout.WEIGHTS)
                adapted = (layout.ADAPTER_CONFIG, layout.ADAPTER_WEIGHTS)
                for name in (*self._unwritten, *model, *adapted):
                    (self.directory / name).unlink(missing_ok=True)
            raise

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def _state(self) -> dict[str, Tensor]:
        """What is trained, and its moments, by name."""
        tensors = {}
        for name, p in self._trained().items():
            tensors[f"weight.{name}"] = p.detach()
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def load_state(self, position: Position) -> None:
        """Continue where a run was saved. Raises `WeightsError` for a damaged state."""
        path = self.directory / STATE_FILE
        tensors, _ = read_safetensors(path)
        trained = self._trained()
        wanted = {f"weight.{name}": p for name, p in trained.items()}
        if any(n not in tensors or tensors[n].shape != p.shape for n, p in wanted.items()):
            raise WeightsError(f"{path} is damaged; it does not hold this model")
        for name, p in trained.items():
            p.data.copy_(tensors[f"weight.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"{key}.{name}")) is not None:
                    self.optimizer.state[p][key] = value.to(self.device)
        self.step = self._saved_step = position.step
        self.best_val_loss = position.best_val_loss
        # A run that is to be longer than it was is given new patience.
        longer = self.settings.steps > position.plan.training.steps
        self.stale = 0 if longer else position.stale
