"""Files of vocabularies: every layout that is in use is read, and what is wrong in one is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Run, error_of, random_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import processors
from vocabularies import EOT, FRAGMENTS, START, USER, Vocabulary, read_vocabulary, reference

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import TokenizerError
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import byte_alphabet
from gpt2cli.weights import checkpoint


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


@pytest.mark.parametrize(
    "entry", [5, {"id": 3}, {"content": "", "id": 3}, {"content": "a", "id": "3"}]
)
def test_an_added_token_needs_a_text_and_an_id(entry: Any, pair: Path, tmp_path: Path) -> None:
    data = json.loads(reference(pair).to_str()) | {"added_tokens": [entry]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="an added token without a text and an id"):
        Tokenizer.load(tmp_path)


def test_the_command_says_what_is_not_supported(
    tiny_directory: Path, tmp_path: Path, run_main: Run
) -> None:
    shutil.copytree(tiny_directory, tmp_path, dirs_exist_ok=True)
    data = json.loads(reference(tiny_directory).to_str())
    data["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    done = run_main("generate", "-m", str(tmp_path), "The", code=1)
    assert "its dropout makes other tokens of the same text each time" in error_of(done)


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
