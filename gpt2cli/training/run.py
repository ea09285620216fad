"""A training run in its directory: begun or resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.system import estimate
from gpt2cli.system.memory import available
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training import state
from gpt2cli.training.corpus import (
    SMALLEST_VOCABULARY,
    Corpus,
    check_length,
    digest_of,
    encode_corpus,
    learn_vocabulary,
    split_text,
    vocabulary_files,
)
from gpt2cli.training.state import Plan
from gpt2cli.training.trainer import Trainer


@contextmanager
def open_run(
    plan: Plan, text: str, directory: Path, *, device: str = "cpu", resume: bool = False
) -> Iterator[Trainer]:
    """Prepare or resume a run in `directory`, and lock the directory meanwhile.

    A new run learns its vocabulary here, and writes nothing before its first save.
    Raises `UsageError` if a model would be overwritten, the text is too short or another,
    a setting has changed or memory does not suffice, and `WeightsError` if there is nothing
    to resume.
    """
    train, val = split_text(text, plan.training.val_fraction)
    # No token is shorter than a byte; the validation part has one token before its text.
    check_length(len(train.encode()), len(val.encode()) + 1, plan.model, "bytes")
    check_memory(replace(plan.model, vocab_size=SMALLEST_VOCABULARY), plan, device)
    if resume:
        state.read_position(directory)
    with state.locked(directory):
        if resume:
            yield _resumed(plan, train, val, directory, device)
        else:
            state.check_directory(directory)
            tokenizer = learn_vocabulary(train, plan.model.vocab_size)
            corpus = encode_corpus(tokenizer, train, val)
            model = _new_model(plan, tokenizer, corpus, device)
            files = vocabulary_files(tokenizer)
            yield Trainer(model, tokenizer, corpus, plan, directory, unwritten=files)


def _resumed(plan: Plan, train: str, val: str, directory: Path, device: str) -> Trainer:
    position = state.read_position(directory)
    position.check_goes_on_as(plan)
    if digest_of(train, val) != position.digest:
        raise UsageError(
            f"the text is not the one that the run in {directory} began with; resume with that, "
            "or train anew in another directory"
        )
    tokenizer = Tokenizer.load(directory)
    corpus = encode_corpus(tokenizer, train, val)
    model = _new_model(plan, tokenizer, corpus, device)
    trainer = Trainer(model, tokenizer, corpus, plan, directory)
    trainer.load_state(position)
    return trainer


def _new_model(plan: Plan, tokenizer: Tokenizer, corpus: Corpus, device: str) -> GPT2:
    """A model with random weights, sized by the vocabulary learned."""
    config = replace(plan.model, vocab_size=tokenizer.size)
    check_length(len(corpus.train), len(corpus.val), config)
    check_memory(config, plan, device)
    generator = torch.Generator().manual_seed(plan.training.seed)
    return GPT2(config).init_weights(generator).to(device)


def check_memory(config: ModelConfig, plan: Plan, device: str) -> None:
    """Raise `UsageError` if a run cannot fit the memory."""
    batch_size, context = plan.training.batch_size, config.context_length
    needed = estimate.training_bytes(config, batch_size, plan.precision)
    free = available(device)
    # Gradients replace freed activations: 124M in fp32 was measured at 0.95 of the estimate.
    if 0.9 * needed > free:
        raise UsageError(
            f"batch_size {batch_size} with a context of {context} tokens needs "
            f"{needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are free; choose a "
            "smaller batch, context or model",
            "batch_size",
        )
