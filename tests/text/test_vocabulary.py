"""Files of vocabularies: every layout that is in use is read, and what is wrong in one is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vocabularies import EOT, FRAGMENTS, Vocabulary, read_vocabulary

from gpt2cli.errors import TokenizerError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import byte_alphabet


def test_the_byte_alphabet_is_the_reference_libraries() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    cut = ByteLevel(add_prefix_space=False, use_regex=False)
    for character, byte in byte_alphabet().items():
        if byte < 0x80:
            assert cut.pre_tokenize_str(chr(byte))[0][0] == character


def tokenizer_json(small: Vocabulary, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A tokenizer.json as the reference writes it, with nothing beside it."""
    path = tmp_path / "tokenizer.json"
    small.reference.save(str(path))
    return path, json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("joined", [True, False])
def test_reads_tokenizer_json_with_merges_as_text_or_pairs(
    small: Vocabulary, tmp_path: Path, joined: bool
) -> None:
    path, data = tokenizer_json(small, tmp_path)
    pairs = [p.split(" ") if isinstance(p, str) else p for p in data["model"]["merges"]]
    data["model"]["merges"] = [" ".join(p) for p in pairs] if joined else pairs
    path.write_text(json.dumps(data), "utf-8")
    ours, text = Tokenizer.load(tmp_path), "".join(FRAGMENTS) + EOT + "def encode(self, text)"
    assert ours.encode(text) == small.reference.encode(text).ids
    assert (ours.size, ours.end_of_text) == (400, 0)


def test_reads_a_special_token_that_only_added_tokens_names(
    small: Vocabulary, tmp_path: Path
) -> None:
    path, data = tokenizer_json(small, tmp_path)
    del data["model"]["vocab"][EOT]
    data["added_tokens"][0]["id"] = 400
    path.write_text(json.dumps(data), "utf-8")
    ours = Tokenizer.load(tmp_path)
    assert (ours.size, ours.end_of_text) == (401, 400)
    assert ours.decode(ours.encode(f"a{EOT}")) == f"a{EOT}"


def test_reads_what_transformers_saves(small: Vocabulary, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    files = [str(small.directory / name) for name in ("vocab.json", "merges.txt")]
    theirs = GPT2Tokenizer(*files)
    theirs.save_pretrained(tmp_path)
    ours, text = Tokenizer.load(tmp_path), f"Hello, I'm a model.\n\n  Ünï😀{EOT} 12"
    assert ours.encode(text) == theirs(text).input_ids
    assert ours.size == 400


def test_reads_files_with_windows_line_ends(small: Vocabulary, tmp_path: Path) -> None:
    shutil.copy(small.directory / "vocab.json", tmp_path)
    lines = (small.directory / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(lines.replace(b"\n", b"\r\n"))
    text = "".join(FRAGMENTS)
    assert Tokenizer.load(tmp_path).encode(text) == small.ours.encode(text)


@pytest.mark.parametrize("present", ["vocab.json", "merges.txt", None])
def test_missing_files_are_named(small: Vocabulary, tmp_path: Path, present: str | None) -> None:
    if present:
        shutil.copy(small.directory / present, tmp_path)
    with pytest.raises(TokenizerError, match=r"no vocab\.json and merges\.txt") as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(error.value)


Json = dict[str, Any]


def two_files(small: Vocabulary, tmp_path: Path) -> tuple[Json, list[str]]:
    vocab = json.loads((small.directory / "vocab.json").read_text("utf-8"))
    return vocab, (small.directory / "merges.txt").read_text("utf-8").splitlines()


def load_two(tmp_path: Path, vocab: object, lines: list[str]) -> Tokenizer:
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(lines), "utf-8")
    return Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "vocab", [[], "abc", None, 7, {"a": "1"}, {"a": -1}, {"a": 1.0}, {"a": True}, {"a": None}]
)
def test_a_vocabulary_must_map_tokens_to_ids(
    small: Vocabulary, tmp_path: Path, vocab: object
) -> None:
    with pytest.raises(TokenizerError, match=r"vocab\.json must map tokens to ids"):
        load_two(tmp_path, vocab, [])


def test_one_id_for_two_tokens_is_refused(small: Vocabulary, tmp_path: Path) -> None:
    vocab, lines = two_files(small, tmp_path)
    with pytest.raises(TokenizerError, match=r"vocab\.json gives one id to several tokens"):
        load_two(tmp_path, {**vocab, "one too many": 5}, lines)


def test_a_vocabulary_without_one_of_the_bytes_is_refused(
    small: Vocabulary, tmp_path: Path
) -> None:
    vocab, lines = two_files(small, tmp_path)
    del vocab["Ā"]
    with pytest.raises(TokenizerError, match="lacks 'Ā'") as error:
        load_two(tmp_path, vocab, lines)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("line", ["a", "a b c", "a  b", "ab\tc"])
def test_a_merge_that_is_no_pair_is_named(small: Vocabulary, tmp_path: Path, line: str) -> None:
    vocab, lines = two_files(small, tmp_path)
    with pytest.raises(TokenizerError, match=r"merges\.txt: merge 3 is not a pair") as error:
        load_two(tmp_path, vocab, [*lines[:3], line, *lines[3:]])
    assert repr(line) in str(error.value)


def test_a_merge_into_an_unknown_token_is_refused(small: Vocabulary, tmp_path: Path) -> None:
    vocab, lines = two_files(small, tmp_path)
    with pytest.raises(TokenizerError, match="lacks 'qqqq'"):
        load_two(tmp_path, vocab, [*lines, "qq qq"])


def test_merges_out_of_the_order_of_their_ids_are_done_in_their_own(
    small: Vocabulary, tmp_path: Path
) -> None:
    vocab, (version, *lines) = two_files(small, tmp_path)
    ours = load_two(tmp_path, vocab, [version, *lines[::-1]])
    reference = read_vocabulary(tmp_path).reference
    for text in ("".join(FRAGMENTS), "def encode(self, text: str) -> list[int]:"):
        assert ours.encode(text) == reference.encode(text).ids != small.ours.encode(text)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe{}", "cannot read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not valid JSON"),
        pytest.param(b"[" * 100_000, "is not valid JSON", id="too deep"),
    ],
)
def test_a_file_that_is_not_json_is_named(
    tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    (tmp_path / name).write_bytes(content)
    if name == "vocab.json":
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match=complaint) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {},
        {"model": None},
        {"model": []},
        {"model": {"vocab": {"a": 0}}},
        {"model": {"vocab": {}, "merges": []}, "added_tokens": 3},
        {"model": {"vocab": {}, "merges": []}, "added_tokens": [{"content": "a"}]},
        {"model": {"vocab": {}, "merges": []}, "added_tokens": [{"content": "a", "id": "x"}]},
        {"model": {"vocab": {}, "merges": [["a", "b", "c"]]}},
        pytest.param({"model": {"vocab": [["a", -1.5]], "merges": []}}),
        pytest.param({"model": {"vocab": None, "merges": []}}),
        pytest.param({"model": {"vocab": {}, "merges": None}}),
        pytest.param({"model": {"vocab": {}, "merges": 3}}),
        pytest.param({"model": {"vocab": {}, "merges": [3]}}),
    ],
    ids=json.dumps,
)
def test_a_tokenizer_json_of_another_shape_is_named(tmp_path: Path, data: object) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(TokenizerError) as error:
        Tokenizer.load(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("pair", [[1, 2], ["a", None], [["a"], "b"]], ids=str)
def test_a_merge_of_something_else_than_text_is_refused(
    small: Vocabulary, tmp_path: Path, pair: object
) -> None:
    path, data = tokenizer_json(small, tmp_path)
    data["model"]["merges"][0] = pair
    path.write_text(json.dumps(data), "utf-8")
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("token", ["", "\ud800"], ids=ascii)
def test_a_special_token_that_no_text_can_contain_is_refused(
    small: Vocabulary, tmp_path: Path, token: str
) -> None:
    """With an empty one, `encode` would never end."""
    vocab, lines = two_files(small, tmp_path)
    with pytest.raises(TokenizerError):
        load_two(tmp_path, {**vocab, token: 400}, lines)


def test_an_id_that_needs_more_than_32_bits_is_refused(small: Vocabulary, tmp_path: Path) -> None:
    vocab, lines = two_files(small, tmp_path)
    with pytest.raises(TokenizerError):
        load_two(tmp_path, {**vocab, "<|far|>": 2**32}, lines)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


ADDED = st.lists(st.fixed_dictionaries({"content": JUNK, "id": JUNK}), max_size=2)


@settings(deadline=None, max_examples=200)
@given(vocab=JUNK, merges=JUNK, added=JUNK | ADDED)
@example(vocab=None, merges=[], added=[])
def test_no_junk_is_a_vocabulary(
    tmp_path_factory: pytest.TempPathFactory, vocab: object, merges: object, added: object
) -> None:
    directory = tmp_path_factory.getbasetemp() / "junk"
    directory.mkdir(exist_ok=True)
    data = {"model": {"vocab": vocab, "merges": merges}, "added_tokens": added}
    (directory / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    with pytest.raises(TokenizerError):
        Tokenizer.load(directory)


def test_what_was_read_can_be_written_again(tiny_directory: Path, tmp_path: Path) -> None:
    found = Tokenizer.load(tiny_directory).vocabulary
    assert found is not None
    for name, content in found.files().items():
        assert content == (tiny_directory / name).read_text(encoding="utf-8")
