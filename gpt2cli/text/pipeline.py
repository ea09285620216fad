"""Encoding for vocabularies that split text otherwise than GPT-2, by the `tokenizers` library.

A fine-tune's `tokenizer.json` may lower-case a text, cut digits apart or strip the spaces around
an added token. The library encodes all of that; ids become bytes as everywhere else.
"""

from __future__ import annotations

import json
from typing import Any

from gpt2cli.errors import TokenizerError
from gpt2cli.text.vocabulary import Vocabulary, byte_alphabet, cutting_steps


class Pipeline:
    """Encodes by a vocabulary's sections. Raises `TokenizerError` for invalid ones."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._variants: dict[tuple[bool, bool], Any] = {}
        self._variant(special=True, follows=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self._vocabulary == other._vocabulary

    __hash__ = None  # type: ignore[assignment]

    @property
    def cuts_words(self) -> bool:
        """Whether a text is more than one word, however long."""
        steps = cutting_steps(self._vocabulary.pre_tokenizer)
        return any(step["type"] != "ByteLevel" or step.get("use_regex", True) for step in steps)

    def encode(self, text: str, *, special: bool, follows: bool) -> list[int]:
        """As `Tokenizer.encode`, without what stands before every text."""
        variant = self._variant(special=special, follows=follows)
        ids: list[int] = variant.encode(text, add_special_tokens=False).ids
        return ids

    def _variant(self, *, special: bool, follows: bool) -> Any:
        """A `tokenizers.Tokenizer` for these flags, which the library cannot switch."""
        if (special, follows) not in self._variants:
            self._variants[special, follows] = _build(self._vocabulary, special, follows)
        return self._variants[special, follows]


def _build(v: Vocabulary, special: bool, follows: bool) -> Any:
    from tokenizers import Tokenizer

    added = v.added if special else {}
    made = {*byte_alphabet(), *(merge.replace(" ", "") for merge in v.merges)}
    tokens = {text: i for text, i in v.tokens.items() if text not in v.added or text in made}
    # The library takes the ids of added tokens from the model's vocabulary, else invents them.
    tokens |= {text: entry["id"] for text, entry in added.items()}
    description = {
        "added_tokens": sorted(added.values(), key=lambda entry: int(entry["id"])),
        "normalizer": v.normalizer,
        "pre_tokenizer": _without_prefix(v.pre_tokenizer) if follows else v.pre_tokenizer,
        "model": {
            "type": "BPE",
            "vocab": tokens,
            "merges": v.merges,
            "ignore_merges": v.ignore_merges,
        },
    }
    try:
        return Tokenizer.from_str(json.dumps(description))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"tokenizer.json cannot be used: {error}") from None


def _without_prefix(section: dict[str, Any]) -> dict[str, Any]:
    """A pre-tokenizer that adds no space in front, for a text that continues another."""
    if isinstance(steps := section.get("pretokenizers"), list):
        return section | {"pretokenizers": [_without_prefix(step) for step in steps]}
    return section | {"add_prefix_space": False} if section.get("type") == "ByteLevel" else section
