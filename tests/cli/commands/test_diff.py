"""`gpt2 diff` as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import BARD_SIZE, Run, needs_engine


def compared(run_main: Run, *arguments: str, stdin: bytes = b"") -> Any:
    done = run_main("diff", *arguments, "--json", "--device", "cpu", stdin=stdin)
    assert done.stderr == b""
    return json.loads(done.stdout)


@needs_engine
def test_fewer_bits_cost_little_and_fewer_cost_more(run_main: Run) -> None:
    text = "To be, or not to be, that is the question:"
    data = [compared(run_main, text, "-m", "bard", "-m", f"bard:int{bits}") for bits in (8, 4)]
    kl8, kl4 = (d["summary"]["mean_kl"] for d in data)
    assert 0 < kl8 < kl4 < 0.05
    int4 = data[1]
    assert [m["precision"] for m in int4["models"]] == ["fp32", "int4"]
    shown = [int4["first"], *(t["token"] for t in int4["tokens"])]
    assert "".join(t["text"] for t in shown[:-1]) == text
    assert shown[-1] is None


@needs_engine
def test_the_table_shows_what_json_says(run_main: Run) -> None:
    arguments = ("To be, or", "-m", "bard", "-m", "bard:int8")
    data = compared(run_main, *arguments)
    text = run_main("diff", *arguments, "--device", "cpu").stdout.decode()
    lines = [line.split() for line in text.splitlines()]
    for line, token in zip(lines[2:5], data["tokens"], strict=False):
        assert line[1:4] == [
            *(f"{s:.3f}" for s in token["surprisals"]),
            f"{token['kl']:.4f}",
        ]
    bits = data["summary"]["surprisals"]
    assert (
        f"A is bard in fp32: {bits[0]:.3f} bits per token, perplexity {2 ** bits[0]:,.1f}" in text
    )
    assert f"B is bard in int8: {bits[1]:.3f} bits per token" in text
    assert "KL(A ‖ B)" in text


def test_the_text_comes_from_wherever_prompts_come_from(run_main: Run, tmp_path: Path) -> None:
    twice = ("-m", "bard", "-m", "bard")
    (tmp_path / "text").write_text("filed\n")
    assert compared(run_main, *twice, stdin=b"piped\n")["prompt"] == "piped"
    assert compared(run_main, "own", *twice, stdin=b"piped\n")["prompt"] == "piped\nown"
    assert compared(run_main, *twice, "-f", str(tmp_path / "text"))["prompt"] == "filed"


def test_a_long_text_is_cut_to_the_smaller_context(run_main: Run, tiny_directory: Path) -> None:
    twice = ("-m", str(tiny_directory), "-m", str(tiny_directory))
    done = run_main("diff", *twice, "--json", stdin=b"0 1 2 3 4 5 6 " * 20)
    assert b"tokens are dropped" in done.stderr
    assert json.loads(done.stdout)["summary"]["places"] == 24


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["bard"], "diff compares two models, not 1: -m NAME -m NAME"),
        (["bard", "bard", "bard"], "two models, not 3"),
        ([], "two models, not 0"),
        (
            ["bard", "bard:int3"],
            "fp16, int8 or int4, not 'int3'; did you mean 'int8'",
        ),
        (["bard", "bart"], "unknown model 'bart'; did you mean 'bard'?"),
        (["bard", "TINY"], f"the vocabularies differ (bard has {BARD_SIZE.vocab_size:,} tokens, "),
    ],
)
def test_wrong_use_is_one_sentence(
    run_main: Run, tiny_directory: Path, models: list[str], message: str
) -> None:
    named = [str(tiny_directory) if name == "TINY" else name for name in models]
    done = run_main("diff", "x", *(part for name in named for part in ("-m", name)), code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
