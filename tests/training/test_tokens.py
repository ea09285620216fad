"""Documents become tokens in a file, which is made once, and are split without any overlap."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import BYTES, TEXT
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gpt2cli.errors import GPT2CLIError, TokenizerError, UsageError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import split_text, train_vocabulary
from gpt2cli.training.documents import Documents
from gpt2cli.training.shuffling import shuffled
from gpt2cli.training.tokens import Tokens, _cut, open_tokens, prepare

END = 256


def write(path: Path, *rows: Any) -> Documents:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Documents([path])


def ids(*parts: str | int) -> list[int]:
    return [i for part in parts for i in (part.encode() if isinstance(part, str) else [part])]


def same(a: Tokens, b: Tokens) -> bool:
    return a.digest == b.digest and a.ids.tolist() == b.ids.tolist()


def test_every_document_ends_in_end_of_text_and_prompts_are_told_apart(tmp_path: Path) -> None:
    rows = [{"text": "é"}, {"prompt": "12", "completion": "345"}, {"text": ""}]
    seen = 0

    def advance(count: int) -> None:
        nonlocal seen
        seen += count

    tokens = prepare(write(tmp_path / "a.jsonl", *rows), BYTES, tmp_path / "run", advance=advance)
    assert tokens.ids.tolist() == ids(END, "é", END, "12345", END)
    assert tokens.ids.dtype == np.uint16
    assert tokens.bounds.tolist() == [1, 4, 10]
    assert tokens.prompts.tolist() == [0, 2]
    assert (tokens.prompt_bytes.tolist(), tokens.text_bytes.tolist()) == ([0, 2], [2, 3])
    assert (tokens.empty, seen, tokens.held_out) == (1, 10, None)
    known = load_file(tokens.path)  # any reader of safetensors
    assert known["ids"].tolist() == tokens.ids.tolist()


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path) -> None:
    large = Tokenizer({bytes([i]): i for i in range(256)}, {"<|endoftext|>": 70_000})
    tokens = prepare(write(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"}), large, tmp_path)
    assert tokens.ids.tolist() == [70_000, 97, 70_000, 98, 70_000]


def test_the_file_is_made_again_only_if_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    first = prepare(write(tmp_path / "a.jsonl", *rows), BYTES, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Documents, "__iter__", None)
        again = prepare(Documents([tmp_path / "a.jsonl"]), BYTES, tmp_path)
    assert same(first, again)
    assert again.path == first.path
    other = Tokenizer({bytes([i]): 255 - i for i in range(256)}, {"<|endoftext|>": 256})
    assert prepare(Documents([tmp_path / "a.jsonl"]), other, tmp_path).digest != first.digest
    changed = prepare(write(tmp_path / "a.jsonl", *rows, {"text": "c"}), BYTES, tmp_path)
    assert changed.digest != first.digest
    moved = prepare(write(tmp_path / "b.jsonl", *rows), BYTES, tmp_path)
    assert same(moved, first)
    moved.path.write_bytes(moved.path.read_bytes()[:-1])
    assert same(prepare(Documents([tmp_path / "b.jsonl"]), BYTES, tmp_path), first)


def test_what_goes_wrong_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="line 2 of"):
        prepare(write(tmp_path / "a.jsonl", {"text": "a"}, {"no": "a"}), BYTES, run)
    with pytest.raises(UsageError, match="no text to train on"):
        prepare(write(tmp_path / "a.jsonl", {"text": " "}), BYTES, run)
    good = write(tmp_path / "a.jsonl", {"text": "a"})
    with pytest.raises(UsageError, match="no text for validation"):
        prepare(good, BYTES, run, validation=write(tmp_path / "b.jsonl", {"text": ""}))
    with pytest.raises(TokenizerError, match=r"^line 1 of .*b.jsonl: the text has over 1,000,000"):
        prepare(
            write(tmp_path / "b.jsonl", {"prompt": "a" * 1_000_001, "completion": "b"}), BYTES, run
        )
    with pytest.raises(UsageError, match=r"has no .* token to end documents with"):
        prepare(good, Tokenizer({bytes([i]): i for i in range(256)}, {}), run)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GPT2CLIError, match=r"cannot write .*safetensors: No space left"):
        prepare(good, BYTES, run)
    assert list(run.iterdir()) == []


def test_a_single_text_is_split_as_training_from_scratch_does(tmp_path: Path) -> None:
    text = TEXT + "é" * 400 + "<|endoftext|>\n"  # what ends the only text is no document
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    text = text.removesuffix("<|endoftext|>\n")
    train, val = split_text(text, 0.1)
    tokenizer = train_vocabulary(train, 300, tmp_path)
    tokens = prepare(Documents([path]), tokenizer, tmp_path)
    assert [part.tolist() for part in tokens.split(seed=0, fraction=0.1)] == [[0], [1]]
    begin, cut, end = tokens.bounds
    assert tokens.ids[begin:cut].tolist() == list(tokenizer.encode(train))
    assert tokens.ids[cut:end].tolist() == list(tokenizer.encode(val))
    assert tokens.text_bytes[1] == len(val.encode())
    assert len(tokens.ids) == end
    smaller = prepare(Documents([path]), tokenizer, tmp_path, most=100)
    assert smaller.text_bytes[1] == 100


@given(st.lists(st.text(st.sampled_from("aé€\n"), min_size=1)), st.floats(0, 1))
def test_a_text_is_cut_between_characters_wherever_its_pieces_end(
    pieces: list[str], place: float
) -> None:
    text = "".join(pieces)
    at = int(len(text.encode()) * place)
    head, tail = ("".join(part) for part in map(list, _cut(pieces, at)))
    assert head + tail == text
    assert 0 <= len(head.encode()) - at <= 2


def some(sizes: list[int], held_out: int | None = None) -> Tokens:
    none = np.zeros(len(sizes), int)
    bounds = np.cumsum([1, *sizes])
    return Tokens(none, bounds, none, none, np.array(sizes), held_out, 0, "", Path())


@given(
    st.lists(st.integers(1, 100), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(1, 500),
    st.integers(0, 9),
)
def test_a_split_holds_out_about_a_fraction_and_never_none_nor_all(
    sizes: list[int], fraction: float, most: int, seed: int
) -> None:
    train, val = some(sizes).split(seed, fraction, most)
    assert sorted([*train, *val]) == list(range(len(sizes)))
    assert train.size
    assert val.size
    held_out, budget = sum(sizes[i] for i in val), min(fraction * sum(sizes), most)
    assert held_out <= budget or (len(val) == 1 and sizes[val[0]] == min(sizes))
    assert held_out > budget - max(sizes) or len(train) == 1
    again = some(sizes).split(seed, fraction, most)
    assert [part.tolist() for part in again] == [train.tolist(), val.tolist()]


def test_a_split_depends_on_the_seed_and_takes_documents_from_everywhere() -> None:
    splits = [some([10] * 1000).split(seed, 0.1)[1] for seed in range(2)]
    assert splits[0].tolist() != splits[1].tolist()
    assert 400 < splits[0].mean() < 600
    assert len(splits[0]) == 100
    with pytest.raises(UsageError, match="cannot be split"):
        some([10]).split(0, 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_a_document_that_is_too_large_makes_room_for_others(seed: int) -> None:
    sizes = [400, *[30] * 20]
    _, val = some(sizes).split(seed, 0.1)
    assert [sizes[i] for i in val] == [30, 30, 30]


def test_validation_from_its_own_file_is_all_of_it(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", {"text": "a"})
    val = write(tmp_path / "b.jsonl", {"text": "b"}, {"text": "c"})
    tokens = prepare(train, BYTES, tmp_path, validation=val)
    assert tokens.ids.tolist() == ids(END, "a", END, "b", END, "c", END)
    assert [part.tolist() for part in tokens.split(0, 0.5)] == [[0], [1, 2]]
    assert open_tokens(tokens.path).held_out == 2


def test_an_order_is_the_same_in_every_version_and_keeps_that_of_fewer() -> None:
    assert shuffled(8, 5).tolist() == [7, 4, 3, 5, 6, 2, 0, 1]
    assert [i for i in shuffled(50, 5) if i < 8] == [7, 4, 3, 5, 6, 2, 0, 1]
    assert shuffled(8, 5, 1).tolist() != shuffled(8, 5).tolist()
