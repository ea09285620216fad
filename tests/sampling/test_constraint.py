"""Constraints: whatever the model wants, the text matches; checked by Python's own re and json."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ScriptedDecoder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import from_numpy

import gpt2cli
from gpt2cli.arrays import Array, NDArray
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import GPT2CLIError, UsageError
from gpt2cli.generation.loop import generate
from gpt2cli.generation.record import Recorder, Sample
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.sampling.constraint import Constraint, mask, resolve
from gpt2cli.sampling.rules import generator
from gpt2cli.sampling.sampler import Sampler, choose
from gpt2cli.text.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="constraints need llguidance")

BARD = gpt2cli.load("bard").tokenizer
FLAT = SamplingConfig(temperature=100.0, top_p=None)  # nearly every token is as likely
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def write(
    constraint: Constraint | None,
    *,
    tokenizer: Tokenizer = BARD,
    seed: int = 0,
    samples: int = 1,
    torch: bool = False,
    **options: object,
) -> list[Sample]:
    assert constraint is not None
    config = GenerationConfig(
        **{
            "sampling": FLAT,
            "max_tokens": 400,
            "samples": samples,
            "seed": seed,
            "constraint": constraint,
            **options,
        }
    )
    random = np.random.default_rng(seed)
    decoder = ScriptedDecoder(
        lambda *_: random.normal(size=tokenizer.size),  # as of a model that has read nothing
        size=tokenizer.size,
        to_array=from_numpy if torch else np.asarray,
    )
    recorder = Recorder(samples)
    for _ in recorder.watch(generate(decoder, tokenizer, [1], config)):
        pass
    return recorder.samples


@pytest.mark.parametrize("to_array", [np.asarray, from_numpy], ids=["numpy", "torch"])
def test_what_may_not_come_is_removed_row_by_row(to_array: Callable[[NDArray], Array]) -> None:
    matchers = [resolve(regex=regex).matcher(BARD) for regex in ("[a-z ]+", "yes|no", "[0-9]")]
    logits = np.random.default_rng(0).normal(size=(3, BARD.size)).astype(np.float32)
    expected = np.full_like(logits, -np.inf)
    for row, numbers, matcher in zip(expected, logits, matchers, strict=True):
        row[matcher.allowed] = numbers[matcher.allowed]
    np.testing.assert_array_equal(mask(to_array(logits), matchers), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5), st.integers(0, 999))
def test_a_choice_is_one_of_the_choices(choices: list[str], seed: int) -> None:
    (sample,) = write(resolve(choice=choices), seed=seed)
    assert sample.matched
    assert sample.text in choices


def test_each_choice_can_come_even_one_that_begins_another() -> None:
    choices = ["a", "ab", "abc", "é\n"]
    samples = write(resolve(choice=choices), samples=60)
    assert {sample.text for sample in samples} == set(choices)
    assert all(sample.matched for sample in samples)


@pytest.mark.parametrize("torch", [False, True], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-f]{3,9}",
        r"(yes|no), (19|20)\d\d!",
        r"é+(ö|🙂){2}",
        r'"/\\"?',
        r"(?i)rom(eo)?",
        r"a.{5}b",
    ],
)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_regex_matches_all_of_the_text(pattern: str, torch: bool, seed: int) -> None:
    for sample in write(resolve(regex=pattern), seed=seed, samples=3, torch=torch):
        assert sample.matched
        assert sample.finish_reason in ("stop", "eos")
        assert re.fullmatch(pattern, sample.text)


def test_json_fits_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    for sample in write(resolve(json_schema=path), samples=12):
        assert sample.matched
        value = json.loads(sample.text)
        assert set(value) == {"name", "age", "tags"}
        assert type(value["name"]) is str
        assert len(value["name"]) <= 8
        assert type(value["age"]) is int
        assert 0 <= value["age"] <= 120
        assert 1 <= len(value["tags"]) <= 3
        assert set(value["tags"]) <= {"a", "b"}


def test_a_grammar_may_nest_as_no_regex_can(tmp_path: Path) -> None:
    path = tmp_path / "nested.lark"
    path.write_text('start: "(" start ")" | "x"')
    texts = [sample.text for sample in write(resolve(grammar=path), samples=30) if sample.matched]
    assert all(re.fullmatch(r"(\(*)x(\)*)", t) and t.count("(") == t.count(")") for t in texts)
    assert len(set(texts)) > 1


def test_greedy_decoding_keeps_to_it_too() -> None:
    (sample,) = write(resolve(regex="[0-9]{4}"), sampling=SamplingConfig(temperature=0))
    assert re.fullmatch("[0-9]{4}", sample.text)


def test_what_is_cut_off_did_not_match_unless_it_might_end_there() -> None:
    (cut,) = write(resolve(regex="[a-z]{200}"), max_tokens=3)
    assert (cut.finish_reason, cut.matched) == ("length", False)
    ends_late, never = write(resolve(choice=["x", "y"]), samples=2, max_tokens=1)
    assert ends_late.matched
    assert never.matched
    # A text of digits may end anywhere: the model did not, the limit did.
    bias = {BARD.end_of_text: -np.inf}
    (digits,) = write(resolve(regex="[0-9]+"), max_tokens=3, bias=bias)
    assert (digits.finish_reason, digits.matched) == ("length", True)


def test_a_vocabulary_without_an_end_of_text() -> None:
    byte_tokens = Tokenizer({bytes([i]): i for i in range(256)}, {})
    assert byte_tokens.end_of_text is None
    (sample,) = write(resolve(regex="ab?c"), tokenizer=byte_tokens)
    assert (sample.text in ("abc", "ac"), sample.finish_reason) == (True, "stop")
    (endless,) = write(resolve(regex="a+"), tokenizer=byte_tokens, max_tokens=9)
    assert (endless.text, endless.finish_reason, endless.matched) == ("a" * 9, "length", True)


def test_end_of_text_written_as_text_is_no_token_that_ends() -> None:
    (sample,) = write(resolve(choice=["<|endoftext|>"]))
    assert sample.text == "<|endoftext|>"
    assert BARD.end_of_text not in sample.token_ids


def test_a_grammar_that_has_failed_does_not_stop_other_texts() -> None:
    constraint = resolve(regex="ab")
    assert constraint is not None
    failed, fine = (constraint.matcher(BARD) for _ in range(2))
    with pytest.raises(GPT2CLIError, match="the constraint failed"):
        failed.push(BARD.one("x"))
    samplers = [Sampler(FLAT, generator(0, i), matcher=m) for i, m in enumerate((failed, fine))]
    none, a = choose(np.zeros((2, BARD.size), np.float32), samplers, [[], []])
    assert none == BARD.size
    assert BARD.decode([a]) in ("a", "ab")
    with pytest.raises(GPT2CLIError, match="the constraint failed"):
        failed.check()
    fine.check()


def test_a_copy_goes_its_own_way() -> None:
    constraint = resolve(choice=["ab", "xy"])
    assert constraint is not None
    one = constraint.matcher(BARD)
    two = one.copy()
    one.push(BARD.one("a"))
    assert [BARD.decode([i]) for i in one.allowed] == ["b"]
    two.push(BARD.one("x"))
    assert [BARD.decode([i]) for i in two.allowed] == ["y"]
    for matcher, token in ((one, "b"), (two, "y")):
        assert not matcher.matches()
        matcher.push(BARD.one(token))
        assert matcher.must_end()


@pytest.mark.parametrize(
    ("regex", "says"),
    [
        ("(ab", "unclosed group"),
        ("a(?=b)", "look-around"),
        (r"[^\s\S]", "no text at all would match"),
        ("", "only the empty text would match"),
    ],
)
def test_a_regex_that_nothing_can_match_is_refused(regex: str, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        resolve(regex=regex)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold an object"),
        ('{"enum": []}', "Unsatisfiable"),
        ("false", "must hold an object"),
        ('{"const": NaN}', "json_schema: "),
        ('{"type": "foo"}', "Invalid type"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
    ],
)
def test_a_schema_that_nothing_can_fit_is_refused(tmp_path: Path, schema: str, says: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(schema)
    with pytest.raises(UsageError, match=re.escape(says)):
        resolve(json_schema=path)
    with pytest.raises(UsageError, match="^json_schema.*" + re.escape(says.split(": ")[-1])):
        resolve(json_schema=schema)


@pytest.mark.parametrize("lark", ["start: other", "start: start", "", "start: ("])
def test_a_grammar_that_nothing_can_match_is_refused(tmp_path: Path, lark: str) -> None:
    path = tmp_path / "grammar.lark"
    path.write_text(lark)
    for source in (path, lark):
        with pytest.raises(UsageError, match=r"^grammar: \S"):
            resolve(grammar=source)


def test_a_schema_or_a_grammar_is_a_file_or_the_text_itself(tmp_path: Path) -> None:
    schema, lark = '{"type": "boolean"}', 'start: "a" | "b"'
    (tmp_path / "schema").write_text(schema)
    (tmp_path / "lark").write_text(lark)
    assert resolve(json_schema=schema) == resolve(json_schema=tmp_path / "schema")
    assert resolve(grammar=lark) == resolve(grammar=tmp_path / "lark")
    for sample in write(resolve(json_schema=schema), samples=3):
        assert sample.text in ("true", "false")


def test_text_that_is_no_unicode_is_refused() -> None:
    for source in ({"regex": "a\ud800"}, {"json_schema": '"\ud800"'}, {"grammar": "\ud800"}):
        with pytest.raises(UsageError, match="it is not valid Unicode text"):
            resolve(**source)  # type: ignore[arg-type]


def test_what_cannot_be_read_or_chosen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve(json_schema=tmp_path / "none")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not valid UTF-8"):
        resolve(grammar=tmp_path / "latin")
    with pytest.raises(UsageError, match="must not be empty"):
        resolve(choice=["a", ""])
    with pytest.raises(UsageError, match="regex and choice cannot go together"):
        resolve(regex="a", choice=["a"])
    assert resolve() is None


@pytest.mark.parametrize(
    "options",
    [{"stop": ("x",)}, {"stop_token_ids": (5,)}, {"ignore_eos": True}, {"min_tokens": 2}],
)
def test_who_decides_where_to_end_is_not_left_open(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="a constraint and"):
        GenerationConfig(constraint=resolve(regex="a"), **options)
    greedy = SamplingConfig(temperature=0)
    with pytest.raises(UsageError, match="a constraint and beams"):
        GenerationConfig(greedy, constraint=resolve(regex="a"), beams=2)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GPT2CLIError, match=re.escape("pip install 'gpt2cli[constrain]'")):
        resolve(regex="a")
