"""Training a GPT-2: batches, gradients, optimiser, loop.

`Trainer.run` yields reports and never prints; `gpt2cli.cli.commands.train` draws it.
Recipe: GPT-2 and GPT-3 papers (Radford et al. 2019; Brown et al. 2020, arXiv:2005.14165,
appendix B), with AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101).

Every step draws its batch and its dropout from (seed, step) alone, so a run that is
stopped and resumed is, number for number, the run that was never stopped. Several processes may
share each step's batch: all do the same at the same time, and the first writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2cli.errors import GPT2CLIError, WeightsError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import lora_layers
from gpt2cli.system.precision import torch_name
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import adapters
from gpt2cli.training.corpus import Corpus
from gpt2cli.training.distributed import ALONE, Group
from gpt2cli.training.loss import summed
from gpt2cli.training.optimizer import learning_rate, make_optimizer
from gpt2cli.training.packing import Rows
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


@torch.no_grad()
def evaluate(model: GPT2, rows: Rows, batch_size: int = 32, group: Group = ALONE) -> float:
    """Mean loss in nats over all tokens to be learned of some rows, which a group shares.

    A token early in its window has little context, so this overestimates the loss.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.token_embedding.weight.device)
    for start in range(0, len(rows), batch_size * group.world):
        begin = start + batch_size * group.rank
        own = range(begin, min(begin + batch_size, len(rows)))
        loss = summed(model, rows.batch(own or [0]))  # of sharded models all compute together
        total += loss.double() if own else 0.0
    model.train(was_training)
    return group.sum(float(total)) / int(rows.targets.sum())


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
        group: Group = ALONE,
    ) -> None:
        """`unwritten` are files that go into the directory with the first thing saved.

        `group` are the processes that do all of this together; it may shard the model.
        """
        self.model, self.tokenizer, self.corpus = model, tokenizer, corpus
        self.directory, self.config = directory, model.config
        self.plan, self.settings = plan, plan.training
        self.group, self._learner = group, group.learner(model, summed)
        self.device = model.token_embedding.weight.device
        self.optimizer = make_optimizer(model, self.settings, plan.precision)
        self.step = 0
        self.best_val_loss = math.inf
        self.stale = 0
        self._unwritten = dict(unwritten or {})
        self._saved_step: int | None = None
        self._reported: dict[str, Any] | None = None

    @property
    def position(self) -> Position:
        """How far the run is."""
        best, digest = self.best_val_loss, self.corpus.digest
        return Position(self.plan, digest, self.step, best, self.stale, self._reported)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or validation has not improved for too long."""
        return self.step >= self.settings.steps or self.position.ended_early

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Report]:
        """Train until `settings.steps`, yielding a `Report` per step, on a GPU per ten.

        A model that is given is first validated as it is. `should_stop` is asked between steps;
        the state is saved either way. Raises `GPT2CLIError` as soon as a number is not finite,
        before it is written to a file. All processes of a group go through the reports.
        """
        if self.plan.base and self.step == 0:
            yield Report(0, None, 0.0, 0.0, *self._validation())
        self.model.train()
        losses: list[Tensor] = []
        targets, started = 0, time.perf_counter()
        while not self.finished and not self._stops(should_stop):
            targets += self.corpus.batches.targets(self.step)
            losses.append(self._optimise())
            self.step += 1
            validates = self.step % self.settings.eval_interval == 0
            if validates or self.step % self._interval == 0 or self.step == self.settings.steps:
                loss = self.group.sum(torch.stack(losses).mean().item()) / self.group.world
                if not math.isfinite(loss):
                    raise self._diverged()
                speed = targets / (time.perf_counter() - started)
                yield self._report(loss, speed)
                losses, targets, started = [], 0, time.perf_counter()
        if self.step != self._saved_step and self.step:
            self._save()

    @property
    def _interval(self) -> int:
        return _READ_EVERY.get(self.device.type, _READ_EVERY_ON_GPU)

    def _stops(self, should_stop: Callable[[], bool]) -> bool:
        """Whether any process is to stop; asking all of them takes time, too."""
        is_due = self.group.world == 1 or self.step % self._interval == 0
        return is_due and self.group.highest(should_stop()) > 0

    def whole(self) -> AbstractContextManager[None]:
        """The first process may use the model alone meanwhile; all have to take part."""
        return self.group.whole(self.model)

    def _report(self, loss: float, speed: float) -> Report:
        rate = float(self.optimizer.param_groups[0]["lr"])
        last = self.step == self.settings.steps
        if self.step % self.settings.eval_interval and not last:
            return Report(self.step, loss, rate, speed)
        val_loss, bits = self._validation()
        best = val_loss < self.best_val_loss
        report = Report(self.step, loss, rate, speed, val_loss, bits, best)
        self._save(report)
        return report

    def _optimise(self) -> Tensor:
        """One step: the gradient of the mean loss of its tokens, and the update. → the loss ()

        The mean is over all tokens of the step, however many are computed at once, and by how many
        processes; that of all their losses is the step's. Dropout is drawn anew for the rows that
        are computed at once, wherever that is done.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.step, self.settings)
        self.optimizer.zero_grad(set_to_none=True)  # before memory is needed for activations
        group, size = self.group, self.settings.micro_batch
        batch = self.corpus.batches.batch(self.step, group.rank, group.world)
        first = self.settings.batch_size * group.rank // group.world  # of the step's rows
        targets = self.corpus.batches.targets(self.step) / group.world  # gradients are averaged
        total = torch.zeros((), device=self.device)
        for begin, part in zip(range(0, len(batch.ids), size), batch.micro(size), strict=True):
            seeds = np.random.SeedSequence([self.settings.seed, self.step, first + begin])
            torch.manual_seed(int(seeds.generate_state(1)[0]))  # of dropout
            more = begin + size < len(batch.ids)
            with self._precision(), group.accumulating(self._learner, more):
                loss = self._learner(part) / targets
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
            loss = evaluate(self.model, rows, min(32, self.settings.micro_batch), self.group)
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

    def _save(self, report: Report | None = None) -> None:
        """Write the model if the report says that it is the best so far, then the state.

        In this order a killed run can always be resumed: it repeats what is missing.
        """
        tensors = self._state()
        # A loss is from before its step's update, so a finite loss does not imply finite weights.
        broken = not all(bool(tensor.isfinite().all()) for tensor in tensors.values())
        if self.group.highest(broken) > 0:
            raise self._diverged()
        best = report is not None and report.best
        if report is not None and report.val_loss is not None:
            self.stale = 0 if best else self.stale + 1
            self.best_val_loss = min(report.val_loss, self.best_val_loss)
        self._reported = asdict(report) if report is not None else None
        with self.whole() if best else nullcontext():
            self.group.first(lambda: self._write(tensors, best))
        self._unwritten, self._saved_step = {}, self.step

    def _write(self, tensors: dict[str, Tensor], best: bool) -> None:
        with self._all_or_nothing():
            for name, content in self._unwritten.items():
                write_text(content, self.directory / name)
            if best:
                self._save_model()
            write_safetensors(tensors, self.directory / STATE_FILE, self.position.metadata())

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
        """Put the best weights, which the directory holds, in the place of the last ones.

        A sharded model has them only while it is `whole`.
        """
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
        """What is trained, and its moments, by name; whole in the first process."""
        self.group.settle(self.model)
        tensors = {}
        for name, p in self._trained().items():
            tensors[f"weight.{name}"] = self.group.gathered(p.detach())
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"{key}.{name}"] = self.group.gathered(value)
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
            p.data.copy_(self.group.placed(tensors[f"weight.{name}"], p))
            for key in ("exp_avg", "exp_avg_sq"):
                if (moment := tensors.get(f"{key}.{name}")) is not None:
                    self.optimizer.state[p][key] = self.group.placed(moment, p)
            if (steps := tensors.get(f"step.{name}")) is not None:
                self.optimizer.state[p]["step"] = steps.to(self.device)
        self.step = self._saved_step = position.step
        self.best_val_loss, self._reported = position.best_val_loss, position.report
        # A run that is to be longer than it was is given new patience.
        longer = self.settings.steps > position.plan.training.steps
        self.stale = 0 if longer else position.stale
