"""A training run in its directory: begun or resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.training import paced
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.model.lora import add_lora, keep_frozen_as
from gpt2cli.progress import Advance
from gpt2cli.text import vocabulary
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import state
from gpt2cli.training.corpus import (
    SMALLEST_VOCABULARY,
    check_length,
    corpus_of,
    learn_vocabulary,
    split_text,
    vocabulary_files,
)
from gpt2cli.training.distributed import ALONE, Group, device_of, joined
from gpt2cli.training.documents import Documents, Fields
from gpt2cli.training.fitting import fitted, save_memory
from gpt2cli.training.state import Plan
from gpt2cli.training.tokens import MOST_HELD_OUT, Tokens, open_tokens, prepare
from gpt2cli.training.trainer import Trainer
from gpt2cli.weights import checkpoint, sources

# What fine-tuning chooses by the number of sequences, unless it is given.
PACE = frozenset({"warmup_steps", "eval_interval", "min_learning_rate"})


class Texts(NamedTuple):
    """The documents to learn from, and those to validate on if they are others."""

    training: Documents
    validation: Documents | None

    @classmethod
    def of(cls, plan: Plan) -> Texts:
        """Those that a plan names. Raises `UsageError` for what cannot be read."""
        fields = Fields.parse(plan.data.fields)
        held_out = plan.data.validation
        return cls(
            Documents(plan.data.files, fields), Documents(held_out, fields) if held_out else None
        )


@contextmanager
def open_run(
    plan: Plan,
    directory: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    given: frozenset[str] = PACE,
    advance: Advance = lambda _: None,
    group: Group = ALONE,
) -> Iterator[Trainer]:
    """Prepare or resume a run in `directory`, and lock the directory meanwhile.

    A new run from scratch learns its vocabulary here; one of a given model chooses the settings
    of its pace that are not `given`. Besides tokens, of which `advance` is told, nothing is
    written before its first save. Raises `UsageError` if a model would be overwritten, the text
    is too short or another, a setting has changed or memory does not suffice, and `WeightsError`
    if there is nothing to resume. All processes of a `group` open the run, in a directory that all
    see; the first prepares it.
    """
    if device == "cpu" and (plan.training.activation_checkpointing or group.shard):
        save_memory()
    texts = Texts.of(plan)
    smallest = plan.model if plan.base else replace(plan.model, vocab_size=SMALLEST_VOCABULARY)
    group.first(lambda: fitted(plan, smallest, device, group))
    position = state.read_position(directory) if resume else None
    if position is not None:
        position.plan.check_same(plan)
    learns = group.is_main and not resume and not plan.base
    learned = _to_learn_from(plan, texts) if learns else None

    def prepared() -> tuple[Tokenizer, Path]:
        if position is None:
            state.check_directory(directory)
        if learned is not None:
            tokenizer = learn_vocabulary(learned, plan.model.vocab_size)
        else:
            own = resume and plan.lora is None
            tokenizer = Tokenizer.load(directory if own else _base(plan))
        return tokenizer, _tokens(plan, texts, tokenizer, directory, advance).path

    with state.locked(directory) if group.is_main else nullcontext():
        tokenizer, path = group.first(prepared)
        tokens = open_tokens(path)
        try:
            if position is None:
                yield _begun(plan, tokenizer, tokens, directory, device, given, group)
            else:
                yield _resumed(plan, tokenizer, tokens, directory, device, group)
        finally:
            if group.is_main and not (directory / state.STATE_FILE).exists():
                with suppress(OSError):  # Windows keeps a file that is mapped
                    path.unlink()


def train(
    plan: Plan, directory: Path, *, device: str = "cpu", shard: bool = False, resume: bool = False
) -> None:
    """Train a run to its end and log it, as one of the processes that the environment names.

    Raises what `open_run` and `Trainer.run` do.
    """
    from gpt2cli.training.log import LOG_FILE, Log

    device = device_of(device)
    with (
        joined(device, shard=shard) as group,
        open_run(plan, directory, device=device, resume=resume, group=group) as trainer,
    ):
        log = Log(directory / LOG_FILE, trainer.position) if group.is_main else None
        for report in trainer.run():
            if log is not None:
                log.write(report)


def _begun(
    plan: Plan,
    tokenizer: Tokenizer,
    tokens: Tokens,
    directory: Path,
    device: str,
    given: frozenset[str],
    group: Group,
) -> Trainer:
    corpus = corpus_of(tokens, plan)
    training = plan.training.for_rows(corpus.rows)
    if plan.base:
        training = paced(training, corpus.rows, given)
        base = _base(plan)
        files = {path.name: path.read_text("utf-8") for path in vocabulary.files(base)}
    else:
        files = vocabulary_files(tokenizer)
    if plan.lora is not None:  # whose model brings its vocabulary
        files = {}
    config = _config(plan, tokenizer)
    plan = replace(plan, training=training)
    plan = group.first(lambda: fitted(plan, config, device, group))
    model = _model(plan, config, is_new=True).to("cpu" if group.shard else device)
    files |= {state.RUN_FILE: state.to_yaml(plan)}
    return Trainer(model, tokenizer, corpus, plan, directory, unwritten=files, group=group)


def _resumed(
    plan: Plan, tokenizer: Tokenizer, tokens: Tokens, directory: Path, device: str, group: Group
) -> Trainer:
    position = state.read_position(directory)
    if tokens.digest != position.digest:
        with suppress(OSError):  # one of several processes does
            tokens.path.unlink()
        raise UsageError(
            f"the text is not the one that the run in {directory} began with; resume with that, "
            "or train anew in another directory"
        )
    corpus = corpus_of(tokens, plan)
    config = _config(plan, tokenizer)
    plan = replace(plan, training=plan.training.for_rows(corpus.rows))
    position.check_goes_on_as(plan)
    plan = group.first(lambda: fitted(plan, config, device, group))
    model = _model(plan, config, is_new=False).to("cpu" if group.shard else device)
    files = {state.RUN_FILE: state.to_yaml(plan)}
    trainer = Trainer(model, tokenizer, corpus, plan, directory, unwritten=files, group=group)
    trainer.load_state(position)
    return trainer


def _base(plan: Plan) -> Path:
    """The files of the model that a run begins with."""
    directory = sources.fetch(sources.resolve(plan.base)).directory
    assert directory is not None
    return directory


def _config(plan: Plan, tokenizer: Tokenizer) -> ModelConfig:
    """The architecture: from scratch it has as many tokens as the vocabulary learned."""
    return plan.model if plan.base else replace(plan.model, vocab_size=tokenizer.size)


def _model(plan: Plan, config: ModelConfig, *, is_new: bool) -> GPT2:
    """The model as it begins; one that goes on gets what was trained of it from its state."""
    generator = torch.Generator().manual_seed(plan.training.seed)
    if plan.base and (is_new or plan.lora):
        _, tensors = checkpoint.read(_base(plan))
        state_ = {name: t.to_torch("cpu", torch.float32) for name, t in tensors.items()}
        model = checkpoint.assemble(config, state_).requires_grad_(True)
    else:
        model = GPT2(config)
        if is_new:
            model.init_weights(generator)
    if plan.lora is not None:
        add_lora(model, plan.lora, generator)
        if plan.precision == "bf16":
            keep_frozen_as(model, torch.bfloat16)
    model.checkpointing = plan.training.activation_checkpointing
    if plan.training.compile:
        for block in model.blocks:
            block.compile()
    return model


def _to_learn_from(plan: Plan, texts: Texts) -> Iterable[str]:
    """What a vocabulary is learned from; of a single text nothing of what is held out."""
    found = iter(texts.training)
    single = "".join(first.text) if (first := next(found, None)) else ""
    if texts.validation is None and next(found, None) is None:
        train, val = split_text(single, plan.training.val_fraction)
        # No token is shorter than a byte; the validation part has one token before its text.
        length, T = len(train.encode()), plan.model.context_length
        check_length(length, len(val.encode()) + 1, T, "bytes")
        return [train]
    return ((document.prompt or "") + "".join(document.text) for document in texts.training)


def _tokens(
    plan: Plan, texts: Texts, tokenizer: Tokenizer, directory: Path, advance: Advance
) -> Tokens:
    """The documents as tokens, in a file of the directory."""
    return prepare(
        texts.training,
        tokenizer,
        directory,
        validation=texts.validation,
        fraction=plan.training.val_fraction,
        most=MOST_HELD_OUT if plan.base else 1 << 62,
        advance=advance,
    )
