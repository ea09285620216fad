"""`gpt2 patch` as a shell sees it: tables, JSON, pages, and what is wrong."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import Run

import gpt2cli
from gpt2cli.analysis import patching

CLEAN, CORRUPTED = "I told the woman that", "I told the man that"
PATCH = ("patch", CLEAN, CORRUPTED, "-m", "bard")


def test_json_holds_what_the_library_computes(run_main: Run) -> None:
    answers = ("--answer", " she", "--versus", " he")
    data = json.loads(run_main(*PATCH, *answers, "--json").stdout)
    model = gpt2cli.load("bard", device="cpu", precision="fp32")
    ids = [model.encode(text) for text in (CLEAN, CORRUPTED)]
    found = patching.patch(model.network(), model.tokenizer, *ids)
    assert (data["clean_prompt"], data["corrupted_prompt"]) == (CLEAN, CORRUPTED)
    assert data["engine"] == "PyTorch"
    assert data["answers"]["answer"]["text"] == " she"
    assert data["answers"]["clean"] > 0 > data["answers"]["corrupted"]
    for name in patching.MAPS:
        assert np.allclose(data[name], getattr(found, name), atol=1e-4)


def test_the_tables_are_the_numbers_in_per_cent(run_main: Run) -> None:
    data = json.loads(run_main(*PATCH, "--json").stdout)
    done = run_main(*PATCH)
    assert done.stderr == b""
    text = done.stdout.decode()
    assert f"The logit of ·she less that of ·he is {data['answers']['clean']:.3f} after" in text
    rows = re.findall(r"^(\d) \S+(?: / \S+)? +(-?\d+) +(-?\d+) +(-?\d+) +(-?\d+)$", text, re.M)
    assert [int(row[0]) for row in rows] == [3, 4]  # the prompts differ from there on
    for position, *shares in rows:
        column = np.array(data["stream"])[:, int(position)]
        assert list(map(int, shares)) == np.round(100 * column).astype(int).tolist()
    assert "by a head" in text
    assert "MLP" not in text
    assert "MLP" in run_main(*PATCH, "--show", "mlp").stdout.decode()


def test_where_numbers_do_not_fit_there_are_shades(run_main: Run) -> None:
    narrow = run_main(*PATCH, "--show", "stream", env={"COLUMNS": "26"}).stdout.decode()
    assert re.search(r"^3 ·woman +██████", narrow, re.MULTILINE)
    assert max(map(len, narrow.splitlines())) <= 26


def test_a_page_holds_the_same_numbers(run_main: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    data = json.loads(run_main(*PATCH, "--json").stdout)
    done = run_main(*PATCH, "--html", str(path))
    assert (done.stdout, done.stderr) == (b"", b"")
    page = path.read_text(encoding="utf-8")
    tips = re.findall(r'data-tip="([^"]+): (-?[\d.]+) % restored"', page)
    numbers = [float(number) for _, number in tips]
    maps = (data[name] for name in ("stream", "heads", "attention", "mlp"))
    expected = [share for values in maps for row in values for share in row]
    assert numbers == pytest.approx(100 * np.array(expected), abs=0.06)
    assert html.unescape(tips[3][0]) == "layer 0, 3 ·woman / ·man"


def test_an_answer_without_its_space_is_told(run_main: Run) -> None:
    done = run_main(*PATCH, "--answer", "she", "--versus", " he", "--json")
    assert done.stderr == b"gpt2: ' she' is more probable there than 'she'\n"
    assert json.loads(done.stdout)["answers"]["answer"]["text"] == "she"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CLEAN], "patch needs CORRUPTED"),
        ([CLEAN, CLEAN], "the prompts are the same"),
        (["I told the queen that", CORRUPTED], "6 and 5: I| told| the| qu|een| that and I| told|"),
        ([CLEAN, CORRUPTED, "--answer", "Romeo"], "'Romeo' is 3 tokens, not one: 'R' (#50), 'ome'"),
        ([CLEAN, CORRUPTED, "--answer", " she", "--versus", " she"], "--answer and --versus are"),
        ([CLEAN, CORRUPTED, "--show", "head"], "no map 'head'; use stream, heads, attention, mlp"),
        ([CLEAN, CORRUPTED, "--html", "/nowhere/x"], "cannot write /nowhere/x"),
        ([CLEAN, CORRUPTED, "more"], "an argument is one too many, 'more'"),
        (["a," * 400, "." + "a," * 399 + "a"], "800 tokens, the context 512"),
    ],
)
def test_wrong_use_is_one_sentence(run_main: Run, arguments: list[str], message: str) -> None:
    done = run_main("patch", *arguments, "-m", "bard", code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_word_that_is_one_token_after_a_space_is_named(run_main: Run) -> None:
    done = run_main(*PATCH, "--answer", "woman", code=2)
    assert b"; ' woman', with a space before it, is one\n" in done.stderr
