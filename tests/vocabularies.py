"""Vocabularies in files, as ours and as Hugging Face reads them, and texts to encode with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from tokenizers import Tokenizer as Reference

from gpt2cli.text.tokenizer import Tokenizer

EOT, START, USER = "<|endoftext|>", "<|startoftext|>", "<|user|>"
FRAGMENTS = [
    *["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'RE", "''s", "’s", "it's", "I'm", "'"],
    *[" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", " \n ", "\x0b", "\x1c", "\x85", "\u00a0"],
    *["\u2003", "\u2028", "\u200b", "\u3000", "\ufeff", "\x00", "\x1b[31m", "\x7f", "\ufffd"],
    *["the", " and", "Hello", " world", "naïve", "e\u0301", "\u0301", "ſ", "İ", "ß", "Ĳ"],
    *["漢字", "かな", "한국어", "हिन्दी", "العربية", "עברית", "Ω", "ДА"],
    *["😀", "👩‍👩‍👧", "🇫🇷", "👍🏽", "🎉", "\U0010ffff", "𝔘", "\ue000"],
    *[
        "0",
        "42",
        "1,000.5",
        "²",
        "Ⅷ",
        "٣",
        "1st",
        "_",
        "a_b",
        "...",
        "<|",
        "|>",
        "<|endoftext",
        "$",
    ],
]
# Characters that no Unicode version has assigned yet may be letters in one library's tables only.
ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
TEXTS = st.lists(st.one_of(st.text(ASSIGNED, max_size=8), st.sampled_from(FRAGMENTS))).map("".join)


@dataclass(frozen=True)
class Vocabulary:
    """One vocabulary, as a directory of files, as ours and as the reference reads it.

    The reference is there twice: one for which "<|endoftext|>" is a token, one for
    which it is text.
    """

    directory: Path
    ours: Tokenizer
    reference: ByteLevelBPETokenizer
    plain: ByteLevelBPETokenizer


def read_vocabulary(directory: Path) -> Vocabulary:
    def reference() -> ByteLevelBPETokenizer:
        files = str(directory / "vocab.json"), str(directory / "merges.txt")
        return ByteLevelBPETokenizer(*files, add_prefix_space=False)

    special = reference()
    special.add_special_tokens([EOT])
    return Vocabulary(directory, Tokenizer.load(directory), special, reference())


def reference(pair: Path) -> Reference:
    """GPT-2's pipeline, which each layout changes a little."""
    files = (str(pair / name) for name in ("vocab.json", "merges.txt"))
    made = ByteLevelBPETokenizer(*files, add_prefix_space=False)
    made.add_special_tokens([EOT])
    tokenizer: Reference = made._tokenizer
    return tokenizer


def id_lists(size: int) -> st.SearchStrategy[list[int]]:
    """Ids that come anyhow; the first few hundred, single bytes, make broken UTF-8."""
    return st.lists(st.integers(0, min(size, 260) - 1) | st.integers(0, size - 1), max_size=12)
