"""Preparing a text: splitting it, learning a vocabulary from it, encoding it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT, of_gpt2
from gpt2cli.weights.safetensors import write_text

SMALLEST_VOCABULARY = 257  # the bytes and end-of-text


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as token ids: the first part for training, the rest for validation.

    `val` begins with the last training token, so that each of its own tokens is predicted
    once; `val_bytes` is the UTF-8 length of what is predicted. `digest` identifies the text.
    """

    train: Tensor
    val: Tensor
    val_bytes: int
    digest: str


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


def check_length(train: int, val: int, config: ModelConfig, unit: str = "tokens") -> None:
    """Raise `UsageError` if a text has too few tokens, or bytes, for one window."""
    for name, length in (("training", train), ("validation", val)):
        if length < config.context_length + 2:
            raise UsageError(
                f"the {name} text has only {length} {unit}; a context of "
                f"{config.context_length} needs more. Use a longer text or a shorter context"
            )


def learn_vocabulary(text: str, vocab_size: int) -> Tokenizer:
    """Learn a byte-level BPE.

    A short text may not have enough pairs to fill `vocab_size`. Raises `UsageError` when
    `vocab_size` does not even hold the 256 bytes and the end-of-text token.
    """
    from tokenizers import ByteLevelBPETokenizer

    if vocab_size < SMALLEST_VOCABULARY:
        raise UsageError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and {END_OF_TEXT})"
        )
    # The text bounds the number of merges; the library allocates for the size it is given.
    most = SMALLEST_VOCABULARY + len(text.encode())
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [text],
        vocab_size=min(vocab_size, most),
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
    tokenizer = learn_vocabulary(text, vocab_size)
    write_vocabulary(vocabulary_files(tokenizer), directory)
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
