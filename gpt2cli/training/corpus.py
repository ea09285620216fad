"""Preparing texts: learning a vocabulary from them, and choosing what to learn and to hold out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT, of_gpt2
from gpt2cli.training.batches import Batches, Epochs, Samples
from gpt2cli.training.packing import Rows, pack
from gpt2cli.training.state import Plan
from gpt2cli.training.tokens import Tokens
from gpt2cli.weights.safetensors import write_text

SMALLEST_VOCABULARY = 257  # the bytes and end-of-text


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """What a run learns from, what it is validated on, and what identifies both.

    An epoch has `rows` sequences, in which `targets` tokens are to be learned.
    `validation_bytes` is the UTF-8 length of what validation predicts.
    """

    batches: Batches
    rows: int
    targets: int
    validation: Rows
    validation_bytes: int
    digest: str


def corpus_of(tokens: Tokens, plan: Plan) -> Corpus:
    """Documents as a run learns from them.

    A model that begins with random weights learns from windows of a single text that begin
    anywhere; all else is learned once per epoch. Raises `UsageError` for too little text.
    """
    settings, T = plan.training, plan.model.context_length
    train, held_out = tokens.split(settings.seed, settings.val_fraction)
    masks = plan.data.mask_prompts
    validation = pack(tokens, held_out, T, mask_prompts=masks)
    size = tokens.text_bytes[held_out].sum()
    if not masks:
        size += tokens.prompt_bytes[held_out].sum()
    batches: Batches
    if is_one_text(tokens) and not plan.base:
        ids = tokens.ids[1 : tokens.bounds[1]]
        check_length(len(ids), len(tokens.ids) - int(tokens.bounds[1]) + 1, T)
        batches = Samples(ids, T, settings.batch_size, settings.seed)
        rows, targets = len(ids) // T, len(ids)
    else:
        packed = pack(tokens, train, T, mask_prompts=masks)
        batches = Epochs(packed, settings.batch_size, settings.seed)
        rows, targets = len(packed), int(packed.targets.sum())
    return Corpus(batches, rows, targets, validation, int(size), tokens.digest)


def is_one_text(tokens: Tokens) -> bool:
    """Whether there is a single text, whose end is held out."""
    return tokens.held_out == 1 and int(tokens.bounds[-1]) == len(tokens.ids) and len(tokens) == 2


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """Cut a text by bytes: the last `val_fraction` of it is for validation."""
    data = text.encode("utf-8")
    cut = len(data) - int(len(data) * val_fraction)
    while cut < len(data) and data[cut] & 0xC0 == 0x80:  # not inside a character
        cut += 1
    return data[:cut].decode("utf-8"), data[cut:].decode("utf-8")


def check_length(train: int, val: int, context_length: int, unit: str = "tokens") -> None:
    """Raise `UsageError` if a text has too few tokens, or bytes, for one window."""
    for name, length in (("training", train), ("validation", val)):
        if length < context_length + 2:
            raise UsageError(
                f"the {name} text has only {length} {unit}; a context of "
                f"{context_length} needs more. Use a longer text or a shorter context"
            )


def learn_vocabulary(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE from texts, which are read one by one.

    A short text may not have enough pairs to fill `vocab_size`. Raises `UsageError` when
    `vocab_size` does not even hold the 256 bytes and the end-of-text token.
    """
    from tokenizers import ByteLevelBPETokenizer

    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and {END_OF_TEXT})"
        )
    # The text bounds the number of merges; the library allocates for the size it is given.
    if isinstance(texts, list):
        vocab_size = min(vocab_size, SMALLEST_VOCABULARY + sum(len(t.encode()) for t in texts))
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    learned = json.loads(trainer.to_str())["model"]
    merges = [f"{left} {right}" for left, right in learned["merges"]]
    return Tokenizer.of(of_gpt2(learned["vocab"], merges), "the text")


def vocabulary_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The files of a vocabulary that was read or learned, by name."""
    return tokenizer.vocabulary.files() if tokenizer.vocabulary else {}


def write_vocabulary(files: Mapping[str, str], directory: Path) -> None:
    """Write the files of a vocabulary. Raises `WeightsError` where that fails."""
    for name, content in files.items():
        write_text(content, directory / name)


def train_vocabulary(text: str, vocab_size: int, directory: Path) -> Tokenizer:
    """Learn a vocabulary and write it."""
    tokenizer = learn_vocabulary([text], vocab_size)
    write_vocabulary(vocabulary_files(tokenizer), directory)
    return tokenizer
