"""The files of a checkpoint's vocabulary, read and checked: tokens, merges, added tokens.

A fine-tune that adds tokens writes them into `tokenizer.json`, or beside `vocab.json` and
`merges.txt` into `added_tokens.json` or `tokenizer_config.json`. A `tokenizer.json` also says how
text is cut before any merging, which may not be GPT-2's way.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2cli.errors import TokenizerError

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = ("vocab.json", "merges.txt")
VOCABULARIES = (("tokenizer.json",), VOCABULARY)  # whichever is there first
ADDED = ("added_tokens.json", "tokenizer_config.json")  # may add tokens to either
_FLAGS = ("single_word", "lstrip", "rstrip")  # what makes an added token more than its text
_HIGHEST = 2**32 - 1
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_LONG = 40  # characters of an added token, beyond which none is compared with the others


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in the vocabulary's files.

    Printable Latin-1 stands for itself; the other 68 bytes get U+0100, U+0101, …
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = (b for b in range(256) if b not in set(printable))
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens` map to ids, `merges` are "a b" in the order in which they were learned.

    `added` are the tokens that are looked for in a text before it is cut, by their text, each as
    `tokenizer.json` lists it. `opening` are the ids that stand before every text. The rest says
    how text is changed and cut, in `tokenizer.json`'s terms.
    """

    tokens: dict[str, int]
    merges: list[str]
    added: dict[str, dict[str, Any]]
    opening: list[int]
    pre_tokenizer: dict[str, Any]
    normalizer: Any = None
    ignore_merges: bool = False

    @property
    def is_gpt2s(self) -> bool:
        """Whether text is cut as OpenAI's encoder.py does, but for tokens that are only text."""
        return (
            self.normalizer is None
            and self.pre_tokenizer.get("type") == "ByteLevel"
            and not self.pre_tokenizer.get("add_prefix_space")
            and self.pre_tokenizer.get("use_regex", True) is True
            and not self.ignore_merges
            and not any(entry[flag] for entry in self.added.values() for flag in _FLAGS)
            and not _overlap(self.added)
        )

    def files(self) -> dict[str, str]:
        """The contents of `vocab.json` and `merges.txt`, by name."""
        vocab = json.dumps(self.tokens, ensure_ascii=False, separators=(",", ":"))
        merges = "".join(f"{merge}\n" for merge in self.merges)
        return dict(zip(VOCABULARY, (vocab, f"#version: 0.2\n{merges}"), strict=True))


def of_gpt2(tokens: dict[str, int], merges: list[str]) -> Vocabulary:
    """A vocabulary that cuts text as GPT-2 does; end-of-text may be among its tokens."""
    added = {text: _entry(text, tokens[text], special=True) for text in {END_OF_TEXT} & {*tokens}}
    return Vocabulary(tokens, merges, added, [], _byte_level())


def files(directory: Path) -> list[Path]:
    """The files of a directory that say what its vocabulary is."""
    names = dict.fromkeys((*ADDED, *(name for pair in VOCABULARIES for name in pair)))
    return [directory / name for name in names if (directory / name).is_file()]


def read(directory: Path) -> Vocabulary:
    """Read the vocabulary files of a directory.

    `tokenizer.json` goes before `vocab.json` and `merges.txt`, as in transformers. Raises
    `TokenizerError` if they are no vocabulary of GPT-2's, or contradict each other.
    """
    path = directory / "tokenizer.json"
    pair = [directory / name for name in VOCABULARY]
    has_pair = all(file.is_file() for file in pair)
    if not has_pair and not path.is_file():
        raise TokenizerError(f"{directory} has no vocab.json and merges.txt, nor tokenizer.json")
    tokens, merges = _read_pair(*pair) if has_pair else ({}, [])
    if not path.is_file():
        return _with_neighbours(tokens, merges, {}, pair[0], directory)
    data = _mapping(_read_json(path), path)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise TokenizerError(f"{path} does not describe a byte-level BPE vocabulary")
    if problem := _problem(data, model):
        raise TokenizerError(f"{path} is not supported: {problem}; only byte-level BPE is")
    known, its_merges = _tokens(model.get("vocab"), path), _merges(model["merges"], path)
    found = _with_neighbours(known, its_merges, data, path, directory)
    if has_pair:
        ids = known | {text: entry["id"] for text, entry in found.added.items()}
        for text, i in tokens.items() if not tokens.items() <= ids.items() else ():
            if ids.get(text) != i:
                raise _contradiction(pair[0], text, i, path, ids.get(text))
        if merges != its_merges:
            raise TokenizerError(f"{pair[1]} and {path} contradict each other: the merges differ")
    return found


def _read_pair(vocab_file: Path, merges_file: Path) -> tuple[dict[str, int], list[str]]:
    lines = _read(merges_file).split("\n")
    merges = _merges([s for s in lines if s and not s.startswith("#version")], merges_file)
    return _tokens(_read_json(vocab_file), vocab_file), merges


def _with_neighbours(
    tokens: dict[str, int], merges: list[str], data: dict[str, Any], path: Path, directory: Path
) -> Vocabulary:
    """What `path` holds, `data` if that is a `tokenizer.json`, and the files next to it."""
    extra, settings = (directory / name for name in ADDED)
    config = _mapping(_read_json(settings), settings) if settings.is_file() else {}
    # The settings have flags as well, so they go before the mere ids.
    sources = {path: data.get("added_tokens") or [], settings: _listed(config)}
    added = _collected(sources | {extra: _extra(extra)}, tokens, path)
    ids = tokens | {text: entry["id"] for text, entry in added.items()}
    cut = data.get("pre_tokenizer") or _byte_level()
    if cut.get("type") == "ByteLevel" and isinstance(config.get("add_prefix_space"), bool):
        cut = cut | {"add_prefix_space": config["add_prefix_space"]}
    if data:
        opening, origin = _opening(data.get("post_processor"), path), path
    else:  # as in transformers, which asks the settings only here
        opening, origin = _opening_of_settings(config, ids, settings), settings
    if not set(opening) <= set(ids.values()):
        raise TokenizerError(f"{origin} puts a token before every text that has no id")
    ignore_merges = bool(data and data["model"].get("ignore_merges"))
    return Vocabulary(tokens, merges, added, opening, cut, data.get("normalizer"), ignore_merges)


def _collected(
    sources: dict[Path, Any], tokens: Mapping[str, int], path: Path
) -> dict[str, dict[str, Any]]:
    """Added tokens of several files, and end-of-text. Raises `TokenizerError` if they conflict."""
    added: dict[str, dict[str, Any]] = {}
    origin = dict.fromkeys(tokens, path)
    texts = {i: text for text, i in tokens.items()} if any(sources.values()) else {}
    for file, listed in sources.items():
        for text, entry in _added(listed, file).items():
            i, known = entry["id"], added[text]["id"] if text in added else tokens.get(text)
            if known not in (None, i):
                raise _contradiction(file, text, i, origin[text], known)
            if texts.setdefault(i, text) != text:
                raise TokenizerError(f"{file} gives {text!r} the id {i}, which {texts[i]!r} has")
            added.setdefault(text, entry)
            origin.setdefault(text, file)
    if END_OF_TEXT in tokens:
        added.setdefault(END_OF_TEXT, _entry(END_OF_TEXT, tokens[END_OF_TEXT], special=True))
    return added


def _contradiction(
    file: Path, text: str, found: int, other: Path, known: int | None
) -> TokenizerError:
    gives = "does not know it" if known is None else f"gives it {known}"
    return TokenizerError(f"{file} gives {text!r} the id {found}, but {other} {gives}")


def _problem(data: dict[str, Any], model: dict[str, Any]) -> str | None:
    """Why ids or bytes cannot be exact with this vocabulary, in words; None if they can."""
    kind = model.get("type") or "BPE"
    decoder = data.get("decoder")
    steps = [str(step.get("type")) for step in cutting_steps(data.get("pre_tokenizer"))]
    if kind != "BPE":
        return f"its model is {kind}"
    if model.get("dropout"):
        return "its dropout makes other tokens of the same text each time"
    if name := next((n for n in _AFFIXES if model.get(n)), None):
        return f"its {name} is part of no text"
    if decoder is not None and _kinds(decoder, "decoders") != ["ByteLevel"]:
        return f"its decoder is {_names(_kinds(decoder, 'decoders'))}"
    if "pre_tokenizer" in data and steps.count("ByteLevel") != 1:
        return f"its pre_tokenizer is {_names(steps)}"
    return None


def _kinds(section: Any, inner: str) -> list[str]:
    """The types of a section, those of a sequence one by one."""
    return [str(part.get("type")) for part in _parts(section, inner)]


def _names(kinds: Sequence[str]) -> str:
    return " and ".join(kinds) or "none"


def _parts(section: Any, inner: str) -> Iterator[dict[str, Any]]:
    """A section, or each of those that its list `inner` holds, in however many layers."""
    waiting = [section]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict) and isinstance(part.get(inner), list):
            waiting += reversed(part[inner])
        else:
            yield part if isinstance(part, dict) else {}


def cutting_steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer in order; none if there is none."""
    return [] if pre_tokenizer is None else list(_parts(pre_tokenizer, "pretokenizers"))


def _byte_level() -> dict[str, Any]:
    """GPT-2's way to cut a text, as `tokenizer.json` says it."""
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"type": "ByteLevel", **options}


def _opening(post_processor: Any, path: Path) -> list[int]:
    """The ids put before every text. Raises `TokenizerError` if some are put after it."""
    ids: list[int] = []
    for step in [] if post_processor is None else _parts(post_processor, "processors"):
        kind = step.get("type")
        if kind == "ByteLevel":
            continue
        try:
            if kind != "TemplateProcessing":
                raise ValueError
            *before, text = step["single"]
            if list(text) != ["Sequence"]:
                raise ValueError
            for piece in before:
                ids += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            if not set(map(type, ids)) <= {int}:
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise TokenizerError(
                f"{path} is not supported: its post_processor ({kind}) does more than put tokens "
                "before a text, and a text with others behind it cannot be continued"
            ) from None
    return ids


def _opening_of_settings(config: dict[str, Any], ids: Mapping[str, int], path: Path) -> list[int]:
    """The token that `tokenizer_config.json` puts before every text, if it puts one there."""
    if config.get("add_eos_token"):
        raise TokenizerError(
            f"{path} is not supported: add_eos_token ends a text, which cannot be continued"
        )
    token = config.get("bos_token", END_OF_TEXT)
    token = token.get("content") if isinstance(token, dict) else token
    return [ids.get(str(token), -1)] if config.get("add_bos_token") else []


def _overlap(texts: Collection[str]) -> bool:
    """Whether one text can begin inside another, so that it matters which is looked for first."""
    if any(len(text) > _LONG for text in texts):
        return len(texts) > 1
    beginnings = {text[:n]: text for text in texts for n in range(1, len(text))}
    return any(
        text[i:n] in texts or (n == len(text) and beginnings.get(text[i:], text) != text)
        for text in texts
        for i in range(len(text))
        for n in range(i + 1, len(text) + 1)
        if (i, n) != (0, len(text))
    )


def _entry(text: str, token_id: int, **flags: bool) -> dict[str, Any]:
    """An added token as `tokenizer.json` lists it; what is special is not normalized."""
    plain = dict.fromkeys((*_FLAGS, "special"), False)
    normalized = not flags.get("special", False)
    return {"id": token_id, "content": text, **plain, "normalized": normalized, **flags}


def _added(found: Any, path: Path) -> dict[str, dict[str, Any]]:
    """Added tokens that a file lists, by their text."""
    entries: dict[str, dict[str, Any]] = {}
    for listed in found if isinstance(found, list) else [None]:
        fields = listed if isinstance(listed, dict) else {}
        text, i = fields.get("content"), fields.get("id")
        if not isinstance(text, str) or not text or type(i) is not int or not 0 <= i <= _HIGHEST:
            raise TokenizerError(f"{path} has an added token without a text and an id: {listed!r}")
        flags = {k: fields[k] for k in (*_FLAGS, "normalized", "special") if k in fields}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise TokenizerError(f"{path}: a flag of {text!r} is neither true nor false")
        if text in entries and entries[text]["id"] != i:
            raise _contradiction(path, text, i, path, entries[text]["id"])
        entries[text] = _entry(text, i, **flags)
    return entries


def _listed(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens that `tokenizer_config.json` lists by their ids."""
    listed = config.get("added_tokens_decoder")
    entries = listed.items() if isinstance(listed, dict) else ()
    return [
        entry | {"id": int(i)}
        for i, entry in entries
        if isinstance(entry, dict) and i.isascii() and i.isdigit() and len(i) < 20
    ]


def _extra(path: Path) -> list[dict[str, Any]]:
    """The tokens of `added_tokens.json`, if it is there."""
    found = _mapping(_read_json(path), path) if path.is_file() else {}
    return [{"content": text, "id": i} for text, i in found.items()]


def _tokens(data: Any, path: Path) -> dict[str, int]:
    # By operations on whole collections: a loop over fifty thousand entries is slow.
    ids = data.values() if isinstance(data, dict) else ()
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) > _HIGHEST or "" in data:
        raise TokenizerError(f"{path} must map tokens to ids")
    if len(set(ids)) != len(data):
        raise TokenizerError(f"{path} gives one id to several tokens")
    return dict(data)


def _merges(pairs: Sequence[Any], path: Path) -> list[str]:
    """Merges as "a b", from that or from the pair [a, b] that newer files hold."""
    merges = [pair if type(pair) is str else _joined(pair) for pair in pairs]
    for i, merge in enumerate(merges):
        if merge.count(" ") != 1:
            raise TokenizerError(f"{path}: merge {i + 1} is not a pair of tokens: {pairs[i]!r}")
    return merges


def _joined(pair: Any) -> str:
    """The pair [a, b] as "a b"; as nothing if it is no such pair."""
    is_pair = type(pair) is list and len(pair) == 2 and all(type(part) is str for part in pair)
    return " ".join(pair) if is_pair else ""


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
