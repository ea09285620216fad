"""Added tokens, and text that is cut in another way than GPT-2's: as `tokenizers` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, Run, error_of, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, ByteLevelBPETokenizer, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Reference

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import TokenizerError
from gpt2cli.text.tokenizer import LONGEST_WORD, Tokenizer
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint

EOT, START, USER = "<|endoftext|>", "<|startoftext|>", "<|user|>"
PIECES = [
    *[EOT, START, USER, "<|us", "<|", "|>", "[PAD]", "king", "King", " ", "  ", "\n", "\t"],
    *["The quick", "don't", "naïve", "e\u0301", "😀", "1234", " 12", "12a", "İ", "ﬁ", "x", "\x00"],
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES), st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=4)
    )
).map("".join)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vocab.json and merges.txt of 300 tokens."""
    directory = tmp_path_factory.mktemp("pair")
    train_vocabulary(TEXT, 300, directory)
    return directory


def reference(pair: Path) -> Reference:
    """GPT-2's pipeline, which each layout changes a little."""
    files = (str(pair / name) for name in ("vocab.json", "merges.txt"))
    made = ByteLevelBPETokenizer(*files, add_prefix_space=False)
    made.add_special_tokens([EOT])
    return made._tokenizer


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
@given(text=TEXTS)
def test_ids_are_those_of_tokenizers(layout: tuple[Tokenizer, Reference], text: str) -> None:
    ours, theirs = layout
    assert ours.encode(text) == theirs.encode(text).ids


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(TEXTS), special=st.booleans())
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


def saved_by_transformers_4(pair: Path, directory: Path) -> None:
    """The pair without the new tokens, and two files that have them."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(pair / name, directory)
    (directory / "added_tokens.json").write_text(json.dumps({START: 300, "[PAD]": 301}))
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    entries = {
        str(i): {"content": text, "special": True, **flags}
        for i, text in ((0, EOT), (300, START), (301, "[PAD]"))
    }
    settings = {"added_tokens_decoder": entries, "tokenizer_class": "GPT2Tokenizer"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def test_the_layouts_of_one_vocabulary_are_equal(pair: Path, tmp_path: Path) -> None:
    made = reference(pair)
    made.add_special_tokens([START, "[PAD]"])
    (tmp_path / "json").mkdir()
    made.save(str(tmp_path / "json" / "tokenizer.json"))
    (tmp_path / "pair").mkdir()
    saved_by_transformers_4(pair, tmp_path / "pair")
    ours = Tokenizer.load(tmp_path / "pair")
    assert ours == Tokenizer.load(tmp_path / "json")
    assert ours != Tokenizer.load(pair)
    text = f"{START}The quick{EOT}[PAD]"
    assert ours.encode(text) == made.encode(text).ids
    assert ours.encode(START) == [300]
    (tmp_path / "pair" / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path / "pair") == ours


def test_what_transformers_saves_now_has_its_new_tokens(pair: Path, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(*(str(pair / name) for name in ("vocab.json", "merges.txt")))
    theirs.add_tokens([START, "king"])
    theirs.add_special_tokens({"pad_token": "[PAD]"})
    theirs.save_pretrained(tmp_path)
    ours, text = Tokenizer.load(tmp_path), f"{START}The king's[PAD]{EOT}"
    assert ours.encode(text) == theirs(text).input_ids
    assert ours.size == 303


def test_added_tokens_are_generated(pair: Path, tmp_path: Path, run_main: Run) -> None:
    saved_by_transformers_4(pair, tmp_path)
    config = ModelConfig(302, context_length=16, emb_dim=24, n_heads=3, n_layers=1)
    model = random_model(config)
    model.final_norm.shift.data = 50 * model.token_embedding.weight.data[300]
    checkpoint.save(model, tmp_path, 0, torch.float32)
    done = run_main("generate", "-m", str(tmp_path), "-t", "0", "-n", "3", "The")
    assert done.stdout.decode() == START * 3


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"type": "Unigram"}, "its model is Unigram"),
        ({"dropout": 0.1}, "its dropout makes other tokens"),
        ({"end_of_word_suffix": "</w>"}, "its end_of_word_suffix is part of no text"),
        ({"continuing_subword_prefix": "##"}, "its continuing_subword_prefix is part"),
        ({"decoder": {"type": "WordPiece"}}, "its decoder is WordPiece"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer is Whitespace"),
        ({"pre_tokenizer": None}, "its pre_tokenizer is none"),
    ],
)
def test_what_has_no_exact_ids_is_refused_by_name(
    sections: dict[str, Any], says: str, pair: Path, tmp_path: Path
) -> None:
    data = json.loads(reference(pair).to_str())
    model = {k: v for k, v in sections.items() if k in data["model"]}
    rest = {k: v for k, v in sections.items() if k not in data["model"]}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(data | rest | {"model": data["model"] | model})
    )
    with pytest.raises(TokenizerError, match=f"tokenizer.json is not supported: {says}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("template", [f"$A {EOT}", f"{EOT} $A {EOT}", f"$A {EOT} $A"])
def test_tokens_put_behind_every_text_are_refused(
    template: str, pair: Path, tmp_path: Path
) -> None:
    made = reference(pair)
    made.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=[(EOT, 0)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=r"its post_processor \(TemplateProcessing\) does"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("added_tokens.json", {EOT: 7}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": EOT}}}),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    name: str, holds: dict[str, Any], pair: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(json.dumps(holds))
    with pytest.raises(
        TokenizerError, match=rf"{name} gives '<\|endoftext\|>' the id 7, but "
    ) as e:
        Tokenizer.load(tmp_path)
    assert str(e.value).endswith("vocab.json gives it 0")


def change(path: Path, **sections: Any) -> None:
    """Rewrite parts of a tokenizer.json."""
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


def token(text: str, token_id: int, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": text, "id": token_id, **dict.fromkeys(names, False), **flags}


def test_a_pair_that_contradicts_tokenizer_json_is_refused(pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    reference(pair).save(str(path))
    assert Tokenizer.load(tmp_path) == Tokenizer.load(pair)
    for name, old, new, says in [
        (
            "vocab.json",
            '"!":1',
            '"!":1000',
            r"vocab.json gives '!' the id 1000, but .* gives it 1$",
        ),
        ("vocab.json", '"!":1', '"!":1,"zz":9000', "'zz' the id 9000, but .* does not know it"),
        ("merges.txt", "\nh e", "\ne h", "merges.txt and .*tokenizer.json contradict each other"),
    ]:
        before = (tmp_path / name).read_text()
        assert old in before
        (tmp_path / name).write_text(before.replace(old, new, 1))
        with pytest.raises(TokenizerError, match=says):
            Tokenizer.load(tmp_path)
        (tmp_path / name).write_text(before)


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ([token(EOT, 7)], r"gives '<\|endoftext\|>' the id 7, but .* gives it 0"),
        ([token(USER, 7)], r"gives '<\|user\|>' the id 7, which .* has"),
        ([token(USER, 300), token(USER, 301)], "the id 301, but .* gives it 300"),
        ([token(USER, 300), token(START, 300)], r"the id 300, which '<\|user\|>' has"),
        ([token(USER, -1)], "without a text and an id"),
        ([token(USER, 300) | {"lstrip": "yes"}], "a flag of '<|user|>' is neither"),
    ],
)
def test_added_tokens_that_contradict_their_own_file_are_refused(
    added: list[dict[str, Any]], says: str, pair: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    reference(pair).save(str(path))
    change(path, added_tokens=added)
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("lstrip", [False, True])
def test_an_added_token_keeps_the_id_of_its_file(lstrip: bool, pair: Path, tmp_path: Path) -> None:
    """`tokenizers` numbers anew where ids have a gap."""
    path = tmp_path / "tokenizer.json"
    reference(pair).save(str(path))
    change(path, added_tokens=[token(USER, 310, lstrip=lstrip)])
    ours = Tokenizer.load(tmp_path)
    assert ours.encode(f"x{USER}") == [*ours.encode("x"), 310]
    assert ours.decode([310]) == USER
    assert ours.size == 311


def test_what_no_merge_makes_is_never_encoded_but_has_its_bytes(pair: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    reference(pair).save(str(path))
    model = json.loads(path.read_text())["model"]
    change(path, model=model | {"vocab": model["vocab"] | {"Ġzzq": 300, "a b": 301}})
    ours, text = Tokenizer.load(tmp_path), "a zzq a b"
    assert ours.encode(text) == Reference.from_file(str(path)).encode(text).ids
    assert ours.decode_bytes([300, 301]) == b" zzqa b"
    assert ours.token_bytes()[300:] == [b" zzq", b"a b"]


def test_flags_of_an_added_token_are_read_where_added_tokens_json_has_only_ids(
    pair: Path, tmp_path: Path
) -> None:
    from transformers import GPT2Tokenizer

    saved_by_transformers_4(pair, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"lstrip": false', '"lstrip": true'))
    ours, text = Tokenizer.load(tmp_path), f"The  {START} quick"
    assert ours.encode(text) == GPT2Tokenizer.from_pretrained(tmp_path)(text).input_ids
    assert ours.encode(text).index(300) == len(ours.encode("The"))


def test_a_long_added_token_costs_no_time(pair: Path, tmp_path: Path) -> None:
    """To compare its every part with the others would take hours."""
    made = reference(pair)
    made.add_tokens([USER, "x" * 20_000])
    made.save(str(tmp_path / "tokenizer.json"))
    ours, text = Tokenizer.load(tmp_path), f"{USER}{'x' * 20_000}y"
    assert ours.encode(text) == made.encode(text).ids


@pytest.mark.parametrize(
    "entry", [5, {"id": 3}, {"content": "", "id": 3}, {"content": "a", "id": "3"}]
)
def test_an_added_token_needs_a_text_and_an_id(entry: Any, pair: Path, tmp_path: Path) -> None:
    data = json.loads(reference(pair).to_str()) | {"added_tokens": [entry]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="an added token without a text and an id"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("after", ["x", "\nx", "", " \n\t"])
def test_a_long_run_of_whitespace_has_the_ids_of_the_reference(after: str, pair: Path) -> None:
    text = f"The{' ' * 700_000}{after} quick{EOT}{chr(10) * 400_000}{after}"
    text += f"{' ' * 100_001}{EOT}{' ' * 100_001}\x1c{' ' * 100_001}\x1f"
    assert Tokenizer.load(pair).encode(text) == reference(pair).encode(text).ids


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


def test_the_command_says_what_is_not_supported(
    tiny_directory: Path, tmp_path: Path, run_main: Run
) -> None:
    shutil.copytree(tiny_directory, tmp_path, dirs_exist_ok=True)
    data = json.loads(reference(tiny_directory).to_str())
    data["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    done = run_main("generate", "-m", str(tmp_path), "The")
    assert done.returncode == 1
    assert "its dropout makes other tokens of the same text each time" in error_of(done)
