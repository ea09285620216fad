"""The tokenizer against Hugging Face's: small vocabularies, GPT-2's own, other layouts."""

import json
import random
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference
from vocabularies import EOT, START, TEXTS, USER, Vocabulary, id_lists, reference

from gpt2cli.errors import TokenizerError, UsageError
from gpt2cli.text.stream import StreamDecoder
from gpt2cli.text.tokenizer import LONGEST_WORD, Tokenizer
from gpt2cli.text.vocabulary import byte_alphabet

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
@given(documents=st.lists(TEXTS.filter(lambda text: EOT not in text), min_size=2, max_size=4))
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


PUBLISHED = json.loads((DATA / "published_ids.json").read_text("utf-8"))
"""Texts and their ids in OpenAI's vocabulary, and every token that their merges pass through."""


def published_tokens() -> dict[bytes, int]:
    """The 256 single bytes, whose ids are those of their characters in order, and the others."""
    alphabet = byte_alphabet()
    single = {bytes([byte]): i for i, byte in enumerate(alphabet.values())}
    longer = PUBLISHED["tokens"].items()
    return single | {bytes(alphabet[c] for c in token): i for token, i in longer}


@pytest.mark.parametrize(("text", "ids"), PUBLISHED["texts"])
def test_gives_the_published_ids_without_the_vocabulary(text: str, ids: list[int]) -> None:
    """Cutting into words and merging in the order of the ids need only the tokens on the way."""
    tokenizer = Tokenizer(published_tokens(), {EOT: 50256})
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("text", "ids"), PUBLISHED["texts"])
def test_gives_the_published_ids(released: Vocabulary, text: str, ids: list[int]) -> None:
    assert released.ours.encode(text) == ids
    assert released.ours.decode(ids) == text


def test_the_published_tokens_are_those_of_the_release(released: Vocabulary) -> None:
    tokens = released.ours.token_bytes()
    assert all(tokens[i] == token for token, i in published_tokens().items())


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


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_decodes_any_ids_as_the_reference(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(id_lists(vocabulary.ours.size))
    expected = vocabulary.reference.decode(ids, skip_special_tokens=False)
    assert vocabulary.ours.decode(ids) == expected


@pytest.mark.parametrize("wrong", [400, -1, 2**31, 2**40, -(2**70)])
def test_an_id_outside_the_vocabulary_is_refused(small: Vocabulary, wrong: int) -> None:
    with pytest.raises(UsageError, match="0 to 399"):
        small.ours.decode([1, wrong])
    with pytest.raises(UsageError, match="0 to 399"):
        StreamDecoder(small.ours).push(wrong)


# --- added tokens, and text that is cut in another way than GPT-2's ----------------------


PIECES = [
    *[EOT, START, USER, "<|us", "<|", "|>", "[PAD]", "king", "King", " ", "  ", "\n", "\t"],
    *["The quick", "don't", "naïve", "e\u0301", "😀", "1234", " 12", "12a", "İ", "ﬁ", "x", "\x00"],
]


MARKED = st.lists(
    st.one_of(
        st.sampled_from(PIECES), st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=4)
    )
).map("".join)


def with_tokens(*tokens: str | AddedToken) -> Callable[[Reference], None]:
    def change(made: Reference) -> None:
        made.add_tokens(list(tokens))

    return change


def sets(name: str, value: Any) -> Callable[[Reference], None]:
    return lambda made: setattr(made, name, value)


def byte_level(**options: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**({"add_prefix_space": False} | options))


LAYOUTS: dict[str, Callable[[Reference], None]] = {
    "as GPT-2": lambda made: None,
    "added": with_tokens(START, "[PAD]", "king"),
    "added special": lambda made: made.add_special_tokens([START, USER]) and None,
    "one begins another": with_tokens("<|us", USER),
    "one ends as another begins": with_tokens("[PAD]", "]x"),
    "with a space": with_tokens("quick king", " 12"),
    "lstrip": with_tokens(AddedToken(START, lstrip=True)),
    "rstrip": with_tokens(AddedToken(START, rstrip=True)),
    "single word": with_tokens(AddedToken("king", single_word=True)),
    "not normalized": with_tokens(AddedToken("King", normalized=False), "king"),
    "prefix space": sets("pre_tokenizer", byte_level(add_prefix_space=True)),
    "whole lines": sets("pre_tokenizer", byte_level(use_regex=False)),
    "digits": sets(
        "pre_tokenizer",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]),
    ),
    "lowercase": sets("normalizer", normalizers.Lowercase()),
    "NFD": sets("normalizer", normalizers.NFD()),
    "NFKC": sets("normalizer", normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(
    request: pytest.FixtureRequest, pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Reference]:
    """A tokenizer.json beside an older pair of files, as ours and as the reference reads it."""
    made = reference(pair)
    LAYOUTS[request.param](made)
    directory = tmp_path_factory.mktemp("layout")
    made.save(str(directory / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(pair / name, directory)
    return Tokenizer.load(directory), made


@settings(deadline=None, max_examples=60)
@given(text=MARKED)
def test_ids_are_those_of_tokenizers(layout: tuple[Tokenizer, Reference], text: str) -> None:
    ours, theirs = layout
    assert ours.encode(text) == theirs.encode(text).ids


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(MARKED), special=st.booleans())
def test_pieces_are_encoded_as_the_whole(
    layout: tuple[Tokenizer, Reference], pieces: list[str], special: bool
) -> None:
    ours, _ = layout
    whole = ours.encode("".join(pieces), special=special)
    assert ours.encode_pieces(pieces, special=special).tolist() == whole


def test_every_id_has_its_bytes_and_is_counted(layout: tuple[Tokenizer, Reference]) -> None:
    ours, theirs = layout
    assert ours.size == theirs.get_vocab_size()
    for text, i in theirs.get_vocab(with_added_tokens=True).items():
        if text in (EOT, START, USER, "[PAD]", "quick king"):
            assert ours.token_bytes()[i] == text.encode()
            assert ours.decode([i]) == text
            assert ours.encode(text) == theirs.encode(text).ids


def test_as_plain_text_an_added_token_is_cut(layout: tuple[Tokenizer, Reference]) -> None:
    ours, theirs = layout
    ids = ours.encode(f"a{EOT}b", special=False)
    assert theirs.token_to_id(EOT) not in ids
    assert ours.decode(ids).strip().lower() == f"a{EOT}b"


def test_a_long_added_token_costs_no_time(pair: Path, tmp_path: Path) -> None:
    """To compare its every part with the others would take hours."""
    made = reference(pair)
    made.add_tokens([USER, "x" * 20_000])
    made.save(str(tmp_path / "tokenizer.json"))
    ours, text = Tokenizer.load(tmp_path), f"{USER}{'x' * 20_000}y"
    assert ours.encode(text) == made.encode(text).ids


@pytest.mark.slow
@pytest.mark.parametrize("after", ["x", "\nx", "", " \n\t"])
def test_a_long_run_of_whitespace_has_the_ids_of_the_reference(after: str, pair: Path) -> None:
    text = f"The{' ' * 700_000}{after} quick{EOT}{chr(10) * 400_000}{after}"
    text += f"{' ' * 100_001}{EOT}{' ' * 100_001}\x1c{' ' * 100_001}\x1f"
    assert Tokenizer.load(pair).encode(text) == reference(pair).encode(text).ids


@pytest.mark.slow
@pytest.mark.parametrize("word", ["a", "7", "-", " ", "\n", "漢"])
def test_a_word_without_end_is_refused_before_it_costs_memory(word: str, pair: Path) -> None:
    ours = Tokenizer.load(pair)
    with pytest.raises(TokenizerError, match="over 1,000,000 letters, digits, signs or spaces"):
        ours.encode_pieces(["The", word * LONGEST_WORD, word, "The"])
    other = "1" if word.isalpha() else "The"
    allowed = f"{other}{word * (LONGEST_WORD - 1)}{other}" + "ab12--" * (LONGEST_WORD // 5)
    assert ours.decode(ours.encode(allowed)) == allowed


def test_a_long_text_that_is_not_cut_into_words_is_refused(pair: Path, tmp_path: Path) -> None:
    made = reference(pair)
    made.pre_tokenizer = byte_level(use_regex=False)
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="this vocabulary does not cut it into words"):
        Tokenizer.load(tmp_path).encode("a b" * LONGEST_WORD)
