"""What stands before a text, what follows one, and sections of tokenizer.json that are junk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TEXT, Run, random_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference
from tokenizers import normalizers, pre_tokenizers, processors

from gpt2cli.analysis.scorer import Scorer
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.errors import TokenizerError
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.generation.session import Session
from gpt2cli.sampling import constraint
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint

EOT = "<|endoftext|>"
CONFIG = ModelConfig(300, context_length=32, emb_dim=24, n_heads=3, n_layers=1)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tokenizer.json of 300 tokens with GPT-2's pipeline."""
    directory = tmp_path_factory.mktemp("described")
    train_vocabulary(TEXT, 300, directory)
    files = (json.loads((directory / "vocab.json").read_text()), directory / "merges.txt")
    merges = [line.split(" ") for line in files[1].read_text().splitlines()[1:]]
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    names = ("single_word", "lstrip", "rstrip", "normalized")
    added = {"id": 0, "content": EOT, "special": True, **dict.fromkeys(names, False)}
    return {
        "added_tokens": [added],
        "normalizer": None,
        "pre_tokenizer": cut,
        "post_processor": None,
        "decoder": cut,
        "model": {"type": "BPE", "vocab": files[0], "merges": merges},
    }


def load(directory: Path, data: dict[str, Any]) -> Tokenizer:
    (directory / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    return Tokenizer.load(directory)


def template(single: str) -> dict[str, Any]:
    made = processors.TemplateProcessing(single=single, pair=None, special_tokens=[(EOT, 0)])
    return dict(json.loads(made.__getstate__()))


@pytest.fixture
def prefixed(described: dict[str, Any], tmp_path: Path) -> Tokenizer:
    """Puts a space before what does not begin with one."""
    cut = described["pre_tokenizer"] | {"add_prefix_space": True}
    return load(tmp_path, described | {"pre_tokenizer": cut})


@pytest.fixture
def opened(described: dict[str, Any], tmp_path: Path) -> Tokenizer:
    """Puts end-of-text before every text."""
    return load(tmp_path, described | {"post_processor": template(f"{EOT} $A")})


def test_an_opening_token_is_put_before_a_text_and_not_within(
    described: dict[str, Any], opened: Tokenizer
) -> None:
    data = described | {"post_processor": template(f"{EOT} $A")}
    theirs = Reference.from_str(json.dumps(data))
    for text in ("", "The quick", f"{EOT}The"):
        assert opened.encode(text) == theirs.encode(text).ids
        assert opened.encode_pieces(text).tolist() == theirs.encode(text).ids
    plain = opened.encode("The quick", follows=True)
    assert opened.encode("The quick") == [0, *plain]
    assert opened.one("x") == opened.encode("x")[1]
    assert opened.beginning() == 0


@pytest.mark.parametrize("single", ["$A", f"{EOT} $A"])
def test_post_processors_in_a_sequence_are_read(
    single: str, described: dict[str, Any], tmp_path: Path
) -> None:
    inner = [described["decoder"], template(single)]
    ours = load(tmp_path, described | {"post_processor": {"type": "Sequence", "processors": inner}})
    assert ours.opening == ([] if single == "$A" else [0])


@pytest.mark.parametrize("has_json", [False, True])
def test_add_bos_token_opens_a_text_where_transformers_does(
    has_json: bool, described: dict[str, Any], tmp_path: Path
) -> None:
    """It is read beside vocab.json and merges.txt, not beside a tokenizer.json."""
    from transformers import GPT2Tokenizer

    settings = {"add_bos_token": True, "bos_token": {"content": EOT, "__type": "AddedToken"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if has_json:
        load(tmp_path, described)
    else:
        train_vocabulary(TEXT, 300, tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path)
    assert ours.encode("The quick") == theirs("The quick").input_ids
    assert ours.opening == ([] if has_json else [0])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"add_bos_token": True, "bos_token": "<s>"}, "before every text that has no id"),
        ({"add_eos_token": True}, "add_eos_token ends a text"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    train_vocabulary(TEXT, 300, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TokenizerError, match=says):
        Tokenizer.load(tmp_path)


def test_a_text_that_is_scored_begins_with_its_opening_token_once(opened: Tokenizer) -> None:
    for bos in (False, True):
        scorer = Scorer(CONFIG, opened, 16, bos=bos)
        assert list(scorer.encode(["The"])) == opened.encode("The")
        rows, shared = scorer.encode_choices("The", [" quick", " lazy"])
        assert [row.count(0) for row in rows] == [1, 1]
        assert shared >= 2


def test_a_prefix_space_is_put_before_a_text_and_not_within(prefixed: Tokenizer) -> None:
    assert prefixed.decode(prefixed.encode("The")) == " The"
    assert prefixed.decode(prefixed.encode("The", follows=True)) == "The"
    assert prefixed.decode([prefixed.one("x")]) == "x"


@pytest.mark.parametrize("kind", ["prefixed", "opened"])
def test_a_session_goes_on_from_its_text_as_it_is(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    weights = {k: v.numpy() for k, v in random_model(CONFIG).state_dict().items()}
    first = tokenizer.encode("The")
    session = Session(NumpyDecoder(CONFIG, weights), tokenizer, GenerationConfig(max_tokens=1))
    for text in ("The", "qu"):
        begin = len(session.ids)
        list(session.complete(text))
        added = session.ids[begin:-1]
        assert added == (first if begin == 0 else tokenizer.encode(text, follows=True))
    session._keep(len(session.ids), "x")
    assert session.text.endswith("x")
    assert not session.text.endswith(" x")


def test_a_constraint_is_met_whatever_is_put_before_a_text(
    described: dict[str, Any], tmp_path: Path, run_main: Run
) -> None:
    cut = described["pre_tokenizer"] | {"add_prefix_space": True}
    both = {"pre_tokenizer": cut, "post_processor": template(f"{EOT} $A")}
    load(tmp_path, described | both)
    checkpoint.save(random_model(CONFIG), tmp_path, 0, torch.float32)
    assert constraint.resolve(choice=["fox"]) is not None
    done = run_main(
        "generate", "-m", str(tmp_path), "--choice", "fox", "--seed", "1", "--no-echo", "The"
    )
    assert done.stdout.decode().strip() == "fox", done.stderr


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 400) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
TYPES = st.sampled_from(
    ["ByteLevel", "Sequence", "Split", "Digits", "Lowercase", "TemplateProcessing", "Metaspace"]
)
SECTION = st.recursive(
    JUNK | st.fixed_dictionaries({"type": TYPES}, optional={"add_prefix_space": JUNK}),
    lambda inner: st.fixed_dictionaries(
        {"type": TYPES},
        optional={
            **dict.fromkeys(["normalizers", "pretokenizers", "processors"], st.lists(inner)),
            **dict.fromkeys(["single", "special_tokens", "pattern", "decoders"], inner | JUNK),
        },
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder"]),
    section=SECTION,
)
@example(name="post_processor", section={"type": "X", "single": [3]})
@example(name="decoder", section=[])
def test_a_section_that_holds_anything_is_as_in_tokenizers_or_refused(
    name: str,
    section: object,
    described: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.getbasetemp() / "sections"
    directory.mkdir(exist_ok=True)
    data, text = described | {name: section}, f"The quick 12 fox{EOT} é"
    try:
        ours = load(directory, data)
    except TokenizerError:
        return
    ids = ours.encode(text)
    assert list(ours.encode_pieces([text[:4], text[4:]])) == ids
    if name != "pre_tokenizer" or section:
        try:
            theirs = Reference.from_str(json.dumps(data))
        except Exception:  # no narrower class is raised; it is stricter where nothing depends on it
            return
        assert ids == theirs.encode(text).ids


@pytest.mark.parametrize(
    "data",
    [
        {"normalizer": normalizers.NFC()},
        {"pre_tokenizer": pre_tokenizers.Digits()},
    ],
    ids=["normalizer", "pre_tokenizer"],
)
def test_the_command_encodes_as_the_file_says(
    data: dict[str, Any], described: dict[str, Any], tmp_path: Path, run_main: Run
) -> None:
    changed = {k: json.loads(v.__getstate__()) for k, v in data.items()}
    if "pre_tokenizer" in changed:
        steps = [changed["pre_tokenizer"], described["pre_tokenizer"]]
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    load(tmp_path, described | changed)
    checkpoint.save(random_model(CONFIG), tmp_path, 0, torch.float32)
    done = run_main("tokenize", "-m", str(tmp_path), "--ids", "The e\u0301 a12")
    expected = Reference.from_str(json.dumps(described | changed)).encode("The e\u0301 a12").ids
    assert done.stdout.decode().split() == [*map(str, expected)]
