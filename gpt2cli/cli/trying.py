"""What a model in training writes, now and then: its progress as people see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2cli.cli.io.terminal import log, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2cli.training.trainer import Trainer

_TOKENS = 48
_PROMPT_TOKENS = 8


def default_prompt(run: Trainer) -> list[int]:
    """The first prompt held out, or the first words of the text held out."""
    rows = run.corpus.validation
    begin, unlearned = int(rows.begin[0]), int(rows.unlearned[0])
    length = unlearned + 1 if unlearned else min(_PROMPT_TOKENS, int(rows.length[0]))
    return [int(i) for i in rows.ids[begin : begin + length]][-run.config.context_length // 2 :]


def write(run: Trainer, prompt: Sequence[int]) -> str:
    """How the model continues a prompt, always with the same random numbers."""
    import torch

    from gpt2cli.config.sampling import USUAL
    from gpt2cli.decoders.torch_decoder import TorchDecoder
    from gpt2cli.generation.loop import generate
    from gpt2cli.generation.settings import configure

    model, was_training = run.model.eval(), run.model.training
    context = run.config.context_length
    ids = list(prompt)[-(context // 2) :] or [run.tokenizer.beginning()]
    config = configure(USUAL, max_tokens=min(_TOKENS, context - len(ids)), seed=0)
    with torch.compiler.set_stance("force_eager"):  # not for each length anew
        decoder = TorchDecoder(model, size=run.tokenizer.size)
        text = "".join(event.text for event in generate(decoder, run.tokenizer, ids, config))
    model.train(was_training)
    return text


def show(title: str, prompt: str, text: str) -> None:
    """Write a sample to stderr, indented."""
    log(f"gpt2: {title}")
    for line in (visible(prompt) + text).strip().splitlines():
        log(f"    {line}")
