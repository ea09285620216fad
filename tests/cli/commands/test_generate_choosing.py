"""`gpt2 generate`: biases, beams, drafts, and reports on the choice of tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import BARD_SIZE, Run, error_of


def test_a_bias_bans_and_min_tokens_waits(run_main: Run, letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-t", "0", "-n", "4")
    first, second = run_main(*arguments, "--bias", "c=-inf").stdout.decode()[:2]
    assert first == "b"
    assert second != "c"
    wrong = run_main(*arguments, "--bias", "cd=1", code=2)
    assert "'cd' is 2 tokens, not one: 'c' (#" in error_of(wrong)
    assert run_main(*arguments, "--stop", "c").stdout == b"b"
    assert run_main(*arguments, "--stop", "c", "--stop", "e", "--min-tokens", "2").stdout == b"bcd"


def test_sampling_can_be_explained(
    run_main: Run, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", "a", "-m", str(letters), "--explain-sampling", "--top-k", "3")
    lines = run_main(*arguments).stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["rule", "the", "temperature", "top-k", "top-p"]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run_main(*arguments).stdout.decode().splitlines()
    assert all(len(line) <= 40 for line in narrow)
    assert sum(line.count("'b'") for line in narrow) == 4  # whole in each rule
    records = [json.loads(line) for line in run_main(*arguments, "--json").stdout.splitlines()]
    assert [record["candidates"] for record in records] == [300, 300, 3, 1]
    assert records[-1]["top"][0]["token"] == "b"
    assert records[-1]["top"][0]["after"] == 1


def test_json_tells_the_log_probabilities(run_main: Run, letters: Path) -> None:
    done = run_main("generate", "a", "-m", str(letters), "-n", "2", "--json", "--logprobs", "2")
    first, second = json.loads(done.stdout)["logprobs"]
    assert (first["token"], second["token"]) == ("b", "c")
    assert first["top"][0] == {"token": "b", "id": first["id"], "logprob": first["logprob"]}
    assert len(second["top"]) == 2


def test_beams_give_several_texts_best_first(run_main: Run, letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "4", "--beams", "3")
    assert run_main(*arguments).stdout == b"bcde"
    records = [json.loads(x) for x in run_main(*arguments, "-s", "3", "--json").stdout.splitlines()]
    assert records[0]["text"] == "bcde"
    assert len({tuple(record["token_ids"]) for record in records}) == 3


@pytest.mark.parametrize("draft", ["bard", "ngram"])
def test_a_draft_changes_nothing_but_is_reported(run_main: Run, draft: str) -> None:
    arguments = ("generate", "ROMEO:", "-m", "bard", "-n", "60", "-t", "0")
    alone = json.loads(run_main(*arguments, "--json").stdout)
    assert alone["draft"] is None
    arguments = (*arguments, "--draft", draft)
    done = run_main(*arguments, "--json", "-v")
    record = json.loads(done.stdout)
    assert record["token_ids"] == alone["token_ids"]
    used = record["draft"]
    assert used["name"] == draft
    assert used["acceptance_rate"] == used["accepted"] / used["proposed"] > 0
    assert used["accepted"] + used["passes"] == 59
    assert f"{used['accepted']} of {used['proposed']} tokens of draft" in done.stderr.decode()
    assert f"({used['acceptance_rate']:.0%})" in done.stderr.decode()
    assert run_main(*arguments).stdout.decode() == alone["text"]


def test_a_draft_of_another_vocabulary_is_refused_before_weights_are_read(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tiny_directory / name).read_bytes())
    done = run_main("generate", "x", "-m", str(tmp_path), "--draft", "bard", code=2)
    assert "bard cannot draft for" in error_of(done)
    assert f"vocabularies differ ({BARD_SIZE.vocab_size:,} and 300 tokens)" in error_of(done)
