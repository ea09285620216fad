"""Tokens that were added to a vocabulary: where they are listed, and what contradicts what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Run, error_of, random_model
from tokenizers import Tokenizer as Reference
from tokenizers import processors
from vocabularies import EOT, START, USER, reference

from gpt2cli.config.model import ModelConfig
from gpt2cli.errors import TokenizerError
from gpt2cli.text.tokenizer import Tokenizer
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
