"""The tokenizer against Hugging Face's `tokenizers`, on a small vocabulary and on GPT-2's own."""

import json
import random
import shutil
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from gpt2cli.errors import TokenizerError, UsageError
from gpt2cli.text.stream import StreamDecoder
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import byte_alphabet

EOT = "<|endoftext|>"

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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """400 tokens, learned from this package's source and some text beyond ASCII."""
    sources = [path.read_text("utf-8") for path in sorted((REPOSITORY / "gpt2cli").rglob("*.py"))]
    trained = ByteLevelBPETokenizer(add_prefix_space=False)
    trained.train_from_iterator(
        [*sources, *("".join(FRAGMENTS) for _ in range(20))],
        vocab_size=400,
        special_tokens=[EOT],
        show_progress=False,
    )
    directory = tmp_path_factory.mktemp("small")
    trained.save_model(str(directory))
    return read_vocabulary(directory)


@pytest.fixture(scope="session")
def released(openai_vocabulary: Path) -> Vocabulary:
    """The vocabulary that OpenAI released."""
    return read_vocabulary(openai_vocabulary)


@pytest.fixture(scope="session", params=["small", "released"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    found: Vocabulary = request.getfixturevalue(request.param)
    return found


# --- encode -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_encodes_as_the_reference_and_decodes_to_the_same_text(
    vocabulary: Vocabulary, text: str
) -> None:
    ids = vocabulary.ours.encode(text)
    assert ids == vocabulary.reference.encode(text).ids
    assert vocabulary.ours.decode(ids) == text


@settings(deadline=None, max_examples=150)
@given(data=st.data(), special=st.booleans())
def test_a_text_in_pieces_is_encoded_as_the_whole(
    vocabulary: Vocabulary, data: st.DataObject, special: bool
) -> None:
    words = st.lists(TEXTS | st.sampled_from([" ", "\n", "  a", "b \n", EOT]), max_size=8)
    text = "".join(data.draw(words))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = vocabulary.ours.encode_pieces(pieces, special=special)
    assert list(ids) == vocabulary.ours.encode(text, special=special)


def test_a_special_token_with_a_space_may_come_in_two_pieces() -> None:
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, {"<| end |>": 70_000})
    assert list(tokenizer.encode_pieces(["a <|", " end |>"])) == [97, 32, 70_000]


@settings(deadline=None, max_examples=100)
@given(documents=st.lists(TEXTS, min_size=2, max_size=4))
def test_end_of_text_is_one_token_or_plain_text(
    vocabulary: Vocabulary, documents: list[str]
) -> None:
    text, ours = EOT.join(documents), vocabulary.ours
    ids = ours.encode(text)
    assert ids == vocabulary.reference.encode(text).ids
    assert ids.count(ours.end_of_text or 0) == len(documents) - 1
    plain = ours.encode(text, special=False)
    assert plain == vocabulary.plain.encode(text).ids
    assert ours.end_of_text not in plain
    assert ours.decode(ids) == ours.decode(plain) == text


def test_encodes_every_token_of_the_vocabulary_as_the_reference_does(
    vocabulary: Vocabulary,
) -> None:
    texts = [vocabulary.reference.decode([i]) for i in range(vocabulary.ours.size)]
    texts = [text for text in texts if text and "\ufffd" not in text]
    assert len(texts) > 200
    expected = vocabulary.plain.encode_batch(texts)
    for text, encoding in zip(texts, expected, strict=True):
        assert vocabulary.ours.encode(text, special=False) == encoding.ids, repr(text)


def test_cuts_every_kind_of_character_as_the_reference_does(vocabulary: Vocabulary) -> None:
    """A stride through Unicode: each character after a space, a letter and a digit."""
    characters = [chr(c) for c in [*range(0x500), *range(0x500, sys.maxunicode, 97)]]
    known = [c for c in characters if unicodedata.category(c) not in ("Cs", "Cn")]
    texts = [f"a {c}b{c} 1{c}2{c}{c}" for c in known]
    expected = vocabulary.reference.encode_batch(texts)
    for text, encoding in zip(texts, expected, strict=True):
        assert vocabulary.ours.encode(text) == encoding.ids, repr(text)


@pytest.mark.parametrize("alphabet", ["a", "ab", "aeinrst", " ", " \n", "'s", "漢字", "0123"])
@pytest.mark.parametrize("length", [499, 500, 501, 3000])
def test_merges_very_long_words_as_the_reference_does(
    vocabulary: Vocabulary, alphabet: str, length: int
) -> None:
    text = "".join(random.Random(length).choices(alphabet, k=length))
    assert vocabulary.ours.encode(text) == vocabulary.reference.encode(text).ids


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        ("Hello world", [15496, 995]),
        (EOT, [50256]),
        ("!", [0]),
        ("", []),
    ],
)
def test_gives_the_published_ids(released: Vocabulary, text: str, ids: list[int]) -> None:
    assert released.ours.encode(text) == ids


def test_the_released_vocabulary_has_its_size_and_end_of_text(released: Vocabulary) -> None:
    assert released.ours.size == 50257
    assert released.ours.end_of_text == 50256


def test_size_counts_the_trained_vocabulary(small: Vocabulary) -> None:
    assert small.ours.size == small.reference.get_vocab_size() == 400
    assert small.ours.end_of_text == small.reference.token_to_id(EOT) == 0


@pytest.mark.parametrize("code", [0xD800, 0xDC80, 0xDFFF], ids=hex)
def test_text_with_a_lone_surrogate_is_refused_by_position(small: Vocabulary, code: int) -> None:
    with pytest.raises(TokenizerError, match="character 2 of the text is a lone surrogate"):
        small.ours.encode(f"ab{chr(code)}cd")


@pytest.mark.parametrize("special", [True, False])
def test_a_megabyte_of_whitespace_is_encoded(small: Vocabulary, special: bool) -> None:
    """More than the regular expression engine can backtrack over in one go."""
    text = " " * 1_000_000 + "x"
    assert small.ours.encode(text, special=special) == small.plain.encode(text).ids


# --- decode -----------------------------------------------------------------------------


def id_lists(size: int) -> st.SearchStrategy[list[int]]:
    """Ids that come anyhow; the first few hundred, single bytes, make broken UTF-8."""
    return st.lists(st.integers(0, min(size, 260) - 1) | st.integers(0, size - 1), max_size=12)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_decodes_any_ids_as_the_reference(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(id_lists(vocabulary.ours.size))
    expected = vocabulary.reference.decode(ids, skip_special_tokens=False)
    assert vocabulary.ours.decode(ids) == expected


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_streamed_pieces_add_up_to_the_decoded_text(
    vocabulary: Vocabulary, data: st.DataObject
) -> None:
    ids = data.draw(id_lists(vocabulary.ours.size))
    stream = StreamDecoder(vocabulary.ours)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == vocabulary.ours.decode(ids)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_a_stream_shows_every_character_as_soon_as_it_is_whole(
    vocabulary: Vocabulary, text: str
) -> None:
    stream, shown, received = StreamDecoder(vocabulary.ours), "", 0
    for token_id in vocabulary.ours.encode(text):
        shown += stream.push(token_id)
        received += len(vocabulary.ours.decode_bytes([token_id]))
        assert shown == whole_characters(text, received)
    assert stream.flush() == ""
    assert shown == text


def whole_characters(text: str, size: int) -> str:
    """The longest beginning of `text` that takes at most `size` bytes of UTF-8."""
    total, count = 0, 0
    for character in text:
        total += len(character.encode("utf-8"))
        if total > size:
            break
        count += 1
    return text[:count]


def test_an_emoji_split_over_tokens_comes_in_one_piece(released: Vocabulary) -> None:
    ids = released.ours.encode("🦜")
    assert len(ids) == 3
    stream = StreamDecoder(released.ours)
    assert [stream.push(i) for i in ids] == ["", "", "🦜"]
    assert stream.flush() == ""


def test_a_character_that_is_never_finished_becomes_one_replacement(released: Vocabulary) -> None:
    stream = StreamDecoder(released.ours)
    assert [stream.push(i) for i in released.ours.encode("🦜")[:-1]] == ["", ""]
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("wrong", [400, -1, 2**31, 2**40, -(2**70)])
def test_an_id_outside_the_vocabulary_is_refused(small: Vocabulary, wrong: int) -> None:
    with pytest.raises(UsageError, match="0 to 399"):
        small.ours.decode([1, wrong])
    with pytest.raises(UsageError, match="0 to 399"):
        StreamDecoder(small.ours).push(wrong)


def test_the_byte_alphabet_is_the_reference_libraries() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet()) == set(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    cut = ByteLevel(add_prefix_space=False, use_regex=False)
    for character, byte in byte_alphabet().items():
        if byte < 0x80:
            assert cut.pre_tokenize_str(chr(byte))[0][0] == character


# --- files ------------------------------------------------------------------------------


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
