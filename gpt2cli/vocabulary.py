"""The files of a checkpoint's vocabulary, read and checked: tokens, merges, what was added to them.

A fine-tune that adds tokens writes them into `tokenizer.json`, or beside `vocab.json` and
`merges.txt` into `added_tokens.json` or `tokenizer_config.json`. A `tokenizer.json` also says how
text is cut before any merging; where that is not GPT-2's way, `Vocabulary.pipeline` has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli import layout
from gpt2cli.errors import TokenizerError

_FLAGS = ("lstrip", "rstrip", "single_word")  # what makes an added token more than its text
_HIGHEST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens` and `added` map to ids, `merges` are "a b" in the order in which they are learned.

    `pipeline` is what `tokenizer.json` holds, if only the `tokenizers` library can cut text
    as that says.
    """

    tokens: dict[str, int]
    merges: list[str]
    added: dict[str, int]
    pipeline: dict[str, Any] | None = None


def read(directory: Path) -> Vocabulary:
    """Read whichever files there are. Raises `TokenizerError` if they are no vocabulary of GPT-2's.

    `tokenizer.json` goes before `vocab.json` and `merges.txt`, as in transformers.
    """
    path = directory / "tokenizer.json"
    if path.is_file():
        data = _mapping(_read_json(path), path)
        model = data.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
            raise TokenizerError(f"{path} does not describe a byte-level BPE vocabulary")
        _refuse_unsupported(data, path)
        merges = _merges(model["merges"], path)
    else:
        path, merges_file = (directory / name for name in layout.VOCABULARY)
        if not (path.is_file() and merges_file.is_file()):
            raise TokenizerError(
                f"{directory} has no vocab.json and merges.txt, nor tokenizer.json"
            )
        lines = _read(merges_file).split("\n")
        merges = _merges([s for s in lines if s and not s.startswith("#version")], merges_file)
        model = {"type": "BPE", "vocab": _read_json(path), "merges": merges}
        data = {"model": model, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    tokens = _tokens(model.get("vocab"), path)
    entries = _added(data.get("added_tokens") or [], path)
    _add_from_neighbours(entries, tokens, data, directory)
    data["added_tokens"] = list(entries.values())
    return Vocabulary(
        tokens,
        merges,
        {text: entry["id"] for text, entry in entries.items()},
        None if _is_gpt2s(data) else data,
    )


def _refuse_unsupported(data: dict[str, Any], path: Path) -> None:
    """Raise `TokenizerError` for what no ids, or no bytes, can be had of exactly."""
    model = data["model"]
    kind = model.get("type") or "BPE"
    decoder, pre_tokenizer = _kind(data.get("decoder")), data.get("pre_tokenizer", {})
    steps = _steps(pre_tokenizer)
    problem = None
    if kind != "BPE":
        problem = f"its model is {kind}"
    elif model.get("dropout"):
        problem = "its dropout makes other tokens of the same text each time"
    elif name := next((n for n in _AFFIXES if model.get(n)), None):
        problem = f"its {name} is part of no text"
    elif decoder not in (None, "ByteLevel"):
        problem = f"its decoder is {decoder}"
    elif pre_tokenizer != {} and "ByteLevel" not in steps:
        problem = f"its pre_tokenizer is {' and '.join(steps) or 'none'}"
    elif _adds_tokens(data.get("post_processor")):
        problem = f"its post_processor ({_kind(data['post_processor'])}) adds tokens to every text"
    if problem:
        raise TokenizerError(f"{path} is not supported: {problem}; only byte-level BPE is")


_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")


def _kind(section: Any) -> str | None:
    return str(section.get("type")) if isinstance(section, dict) else None


def _steps(pre_tokenizer: Any) -> list[str]:
    """The types of a pre-tokenizer, those of a sequence one by one."""
    if not isinstance(pre_tokenizer, dict):
        return []
    inner = pre_tokenizer.get("pretokenizers")
    if isinstance(inner, list):
        return [step for section in inner for step in _steps(section)]
    return [str(pre_tokenizer.get("type"))]


def _adds_tokens(post_processor: Any) -> bool:
    if not isinstance(post_processor, dict) or post_processor.get("type") == "ByteLevel":
        return False
    single = post_processor.get("single")
    return not (isinstance(single, list) and all("Sequence" in piece for piece in single))


def _is_gpt2s(data: dict[str, Any]) -> bool:
    """Whether text is cut as OpenAI's encoder.py does, but for tokens that stand for themselves."""
    cut: dict[str, Any] = data.get("pre_tokenizer") or {"type": "ByteLevel"}
    added = data["added_tokens"]
    return (
        data.get("normalizer") is None
        and cut.get("type") == "ByteLevel"
        and not cut.get("add_prefix_space", False)
        and cut.get("use_regex", True)
        and not data["model"].get("ignore_merges")
        and not any(entry.get(flag) for entry in added for flag in _FLAGS)
        and not _overlap([entry["content"] for entry in added])
    )


def _overlap(texts: Sequence[str]) -> bool:
    """Whether one text can begin inside another, so that it matters which is looked for first."""
    known = set(texts)
    beginnings = {text[:n]: text for text in texts for n in range(1, len(text))}
    return any(
        text[i:n] in known or (n == len(text) and beginnings.get(text[i:], text) != text)
        for text in texts
        for i in range(len(text))
        for n in range(i + 1, len(text) + 1)
        if (i, n) != (0, len(text))
    )


def _added(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Added tokens as `tokenizer.json` lists them, by their text."""
    entries: dict[str, dict[str, Any]] = {}
    for entry in found if isinstance(found, list) else [None]:
        fields = entry if isinstance(entry, dict) else {}
        text = fields.get("content")
        if not isinstance(text, str) or not text or type(fields.get("id")) is not int:
            raise TokenizerError(f"{path} has an added token without a text and an id: {entry!r}")
        entries[text] = fields
    return entries


def _add_from_neighbours(
    entries: dict[str, dict[str, Any]],
    tokens: Mapping[str, int],
    data: dict[str, Any],
    directory: Path,
) -> None:
    """Put in what `added_tokens.json` and `tokenizer_config.json` add, refusing contradictions."""
    extra, settings = (directory / name for name in layout.ADDED)
    more: list[tuple[dict[str, Any], Path]] = []
    if extra.is_file():
        found = _mapping(_read_json(extra), extra)
        more += [({"content": text, "id": i}, extra) for text, i in found.items()]
    if settings.is_file():
        config = _mapping(_read_json(settings), settings)
        listed = config.get("added_tokens_decoder")
        for i, entry in (listed if isinstance(listed, dict) else {}).items():
            if isinstance(entry, dict) and i.isascii() and i.isdigit():
                more.append((entry | {"id": int(i)}, settings))
        cut = data.get("pre_tokenizer")
        prefix = config.get("add_prefix_space")
        if isinstance(cut, dict) and cut.get("type") == "ByteLevel" and isinstance(prefix, bool):
            data["pre_tokenizer"] = cut | {"add_prefix_space": prefix}
    for entry, path in more:
        ((text, entry),) = _added([entry], path).items()
        known = entries[text]["id"] if text in entries else tokens.get(text, entry["id"])
        if known != entry["id"]:
            raise TokenizerError(
                f"{path} gives {text!r} the id {entry['id']}, the vocabulary beside it {known}"
            )
        entries.setdefault(text, dict.fromkeys(_FLAGS, False) | entry)


def _tokens(data: Any, path: Path) -> dict[str, int]:
    # In ways that do not look at fifty thousand entries one by one.
    ids = data.values() if isinstance(data, dict) else ()
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > _HIGHEST or "" in data:
        raise TokenizerError(f"{path} must map tokens to ids")
    if len(set(ids)) != len(data):
        raise TokenizerError(f"{path} gives one id to several tokens")
    return dict(data)


def _merges(pairs: Sequence[Any], path: Path) -> list[str]:
    """Merges as "a b", from that or from the pair [a, b] that newer files hold."""
    for i, pair in enumerate(pairs):
        parts = pair.split(" ") if type(pair) is str else pair
        if type(parts) is not list or len(parts) != 2 or not all(type(p) is str for p in parts):
            raise TokenizerError(f"{path}: merge {i + 1} is not a pair of tokens: {pair!r}")
    return [pair if type(pair) is str else " ".join(pair) for pair in pairs]


def _mapping(data: Any, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} must hold an object")
    return data


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON: {error}") from None
