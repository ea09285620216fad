"""Constraints of `gpt2 generate`, as a shell sees them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers import Run

pytest.importorskip("llguidance", reason="constraints need llguidance")

BARD = ("generate", "-m", "bard", "--seed", "1", "ROMEO:")


def test_a_regex_in_a_pipe(run_main: Run) -> None:
    done = run_main(*BARD, "--regex", "[A-Z][a-z]+, [0-9]{3}!")
    assert re.fullmatch(rb"[A-Z][a-z]+, [0-9]{3}!", done.stdout)


def test_choices_for_several_samples_as_json(run_main: Run) -> None:
    done = run_main(*BARD, "--choice", "yes", "--choice", "no way", "-s", "4", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 4
    assert {record["text"] for record in records} <= {"yes", "no way"}
    assert all(record["matched"] is True for record in records)
    assert records[0]["constraint"] == {"choice": ["yes", "no way"]}


def test_the_choice_that_was_made_has_the_probability_that_score_gives_it(
    run_main: Run, tmp_path: Path
) -> None:
    choices = [" yes, my lord", " no way", " aye"]
    made = [word for choice in choices for word in ("--choice", choice)]
    weighed = [word for choice in choices for word in ("--choice", choice)]
    for more in (["-s", "3"], ["-n", "20", "-t", "0"]):
        done = run_main(*BARD, *made, "--json", *more)
        scored = run_main("score", "-m", "bard", "--text", "ROMEO:", *weighed, "--json").stdout
        expected = {r["text"]: r for r in map(json.loads, scored.splitlines())}
        for record in map(json.loads, done.stdout.splitlines()):
            own = expected[record["text"]]
            assert record["choice"] == {
                name: pytest.approx(own[name], rel=1e-3) if name != "text" else own[name]
                for name in ("text", "log_probability", "share")
            }
    done = run_main(*BARD, "--choice", "yes, my lord", "-n", "1", "--json", code=1)
    cut = json.loads(done.stdout)
    assert (cut["matched"], cut["choice"]) == (False, None)


def test_a_schema_and_a_grammar_from_files(run_main: Run, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "array", "items": {"type": "boolean"}, "maxItems": 4}')
    done = run_main(*BARD, "--json-schema", str(schema))
    assert all(type(value) is bool for value in json.loads(done.stdout))
    grammar.write_text('start: NAME " loves " NAME\nNAME: /[A-Z][a-z]{1,5}/')
    done = run_main(*BARD, "--grammar", str(grammar))
    assert re.fullmatch(rb"[A-Z][a-z]{1,5} loves [A-Z][a-z]{1,5}", done.stdout)


def test_a_text_cut_off_is_a_failure(run_main: Run) -> None:
    done = run_main(*BARD, "--regex", "[a-z]{200}", "-n", "5", "--json", code=1)
    assert json.loads(done.stdout)["matched"] is False
    assert b"the text does not match the constraint" in done.stderr
    assert b"--max-tokens (5) came first; raise it" in done.stderr


def test_without_a_constraint_nothing_is_said_about_it(run_main: Run) -> None:
    record = json.loads(run_main(*BARD, "-n", "2", "--json").stdout)
    assert "matched" not in record
    assert record["constraint"] is None


def test_it_shows_among_the_rules(run_main: Run) -> None:
    done = run_main(*BARD, "--choice", "yes", "--explain-sampling")
    assert re.search(rb"^constraint +[1-9]", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--regex", "(ab"),
        ("--regex", "a", "--choice", "a"),
        ("--choice", ""),
        ("--json-schema", "/nowhere"),
        ("--regex", "a", "--stop", "b"),
        ("--regex", "a", "--draft", "ngram"),
    ],
)
def test_what_cannot_be_is_one_sentence(run_main: Run, wrong: tuple[str, ...]) -> None:
    done = run_main(*BARD, *wrong, code=2)
    assert done.stdout == b""
    assert done.stderr.startswith(b"gpt2: ")
    assert done.stderr.count(b"\n") == 1
