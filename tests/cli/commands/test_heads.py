"""`gpt2 heads` as a shell sees it: the table, the map, JSON."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from helpers import Run

import gpt2cli
from gpt2cli.analysis import heads

HEADS = ("heads", "-m", "bard", "--least", "0.1", "--texts", "2")


def test_json_holds_what_the_library_computes(run_main: Run) -> None:
    data = json.loads(run_main(*HEADS, "--seed", "5", "--json").stdout)
    model = gpt2cli.load("bard", device="cpu", precision="fp32")
    found = heads.score_heads(model.network(), model.tokenizer, seed=5, texts=2)
    for kind in heads.KINDS:
        assert np.allclose(data[kind], getattr(found, kind), atol=1e-5)
        assert data["heads"][kind].keys() == found.of_kind(kind, 0.1).keys()
    assert (data["engine"], data["seed"], data["tokens"]) == ("PyTorch", 5, 101)


def test_the_table_and_the_map_name_the_same_heads(run_main: Run) -> None:
    data = json.loads(run_main(*HEADS, "--json").stdout)
    text = run_main(*HEADS).stdout.decode()
    assert re.search(r"^induction +none; 3\.1 is nearest .* 0\.\d\d\d$", text, re.MULTILINE)
    listed = re.findall(r"^previous token +(\d\.\d) .* (0\.\d+)$", text, re.MULTILINE)
    assert dict(listed) == {head: f"{s:.3f}" for head, s in data["heads"]["previous"].items()}
    rows = [line.split() for line in text.splitlines()[-4:]]
    mapped = {
        f"{layer}.{head}"
        for layer, row in enumerate(rows)
        for head, cell in enumerate(row[1:])
        if cell.startswith("p")
    }
    assert mapped == data["heads"]["previous"].keys()


def test_a_narrow_terminal_has_letters_alone(run_main: Run) -> None:
    text = run_main(*HEADS, env={"COLUMNS": "20"}).stdout.decode()
    assert re.search(r"^ 1  p p p ·$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--least", "2"], "--least must be 0 to 1, not 2"),
        (["--texts", "0"], "--texts must be at least 1, not 0"),
    ],
)
def test_wrong_use_is_one_sentence(run_main: Run, arguments: list[str], message: str) -> None:
    done = run_main("heads", "-m", "bard", *arguments, code=2)
    assert done.stderr.decode() == f"gpt2: {message}\n"
