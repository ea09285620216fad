"""`gpt2 info`: numbers for people and for programs, at once and without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Run


def test_one_model_for_people(run_main: Run) -> None:
    done = run_main("info")
    assert done.stderr == b""
    text = done.stdout.decode()
    for shown in ("124,439,808", "163,037,184", "497.8 MB", "73.7 kB", "This machine", "fits"):
        assert shown in text
    assert b"\x1b" not in done.stdout


def test_one_model_for_programs(run_main: Run) -> None:
    data = json.loads(run_main("info", "-m", "medium", "--json").stdout)
    assert data["model"] == "355M"
    assert data["parameters"]["total"] == 354_823_168
    assert data["memory"]["fp32"]["weights"] == 4 * 354_823_168
    assert data["machine"]["device"] in ("cpu", "cuda", "mps")
    assert isinstance(data["fits"], bool)


def test_all_models(run_main: Run) -> None:
    text = run_main("info", "--all").stdout.decode()
    assert max(map(len, text.splitlines())) <= 80
    names = ("bard", "124M", "355M", "774M", "1558M", "gpt3-175B")
    assert [line.split()[0] for line in text.splitlines()[2:]] == list(names)
    assert set(json.loads(run_main("info", "--all", "--json").stdout)) == set(names)


def test_what_fits(run_main: Run) -> None:
    data = json.loads(run_main("info", "--fit", "--json").stdout)
    assert data["models"]["bard"]["fp32"]["fits"]
    assert not data["models"]["gpt3-175B"]["fp32"]["fits"]
    assert data["machine"]["memory_available"] > 0
    table = run_main("info", "--fit").stdout.decode()
    row = next(line for line in table.splitlines() if line.startswith("gpt3-175B"))
    assert row.count("too big") == len(data["models"]["gpt3-175B"])
    assert " - " not in table


def test_beside_gpt3(run_main: Run) -> None:
    text = run_main("info", "--compare", "gpt3").stdout.decode()
    for shown in ("174,604,259,328", "12,288", "300.0 G", "not published", "2,048", "arXiv"):
        assert shown in text
    data = json.loads(run_main("info", "--compare", "gpt3", "--json").stdout)
    assert [data[name]["history"]["year"] for name in ("124M", "gpt3-175B")] == [2019, 2020]


def test_a_model_without_a_paper_has_no_published_figures(run_main: Run) -> None:
    text = run_main("info", "-m", "bard", "--compare", "gpt3").stdout.decode()
    assert "not published" not in text


def test_a_directory(run_main: Run, tiny_directory: Path, tmp_path: Path) -> None:
    data = json.loads(run_main("info", "-m", str(tiny_directory), "--json").stdout)
    assert data["config"]["emb_dim"] == 24
    odd = tmp_path / "[red]:heart:\x1b[2J"
    odd.symlink_to(tiny_directory)
    shown = run_main("info", "-m", str(odd)).stdout
    assert b"[red]:heart:" in shown.replace(b"\n", b"")
    assert b"\x1b" not in shown


def test_a_reader_that_has_gone() -> None:
    for option in ([], ["--all"], ["--fit"], ["--compare", "gpt3"], ["--json"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "gpt2cli", "info", *option],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("options", [["--all"], ["--fit"], ["--compare", "gpt3"], []])
def test_a_narrow_terminal_breaks_no_number(
    options: list[str], run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = re.compile(r"\d[\d,.]*(?: [kMGT]?B)?")
    wide = re.sub(r"\S+ GB of", "", run_main("info", *options).stdout.decode())  # free: it varies
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run_main("info", *options).stdout.decode()
    assert max(map(len, narrow.splitlines())) <= 40
    # A sentence may end its line between a number and its unit.
    assert set(number.findall(wide)) <= set(number.findall(" ".join(narrow.split())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "126M"], b"did you mean '124M'"),
        (["--compare", "gpt33"], b"did you mean 'gpt3'"),
        (["-m", "someone/thing"], b"gpt2 models pull someone/thing"),
    ],
)
def test_unknown_models_are_usage_errors(
    run_main: Run, arguments: list[str], message: bytes
) -> None:
    done = run_main("info", *arguments, code=2)
    assert message in done.stderr


def test_version(run_process: Run) -> None:
    assert run_process("--version").stdout.startswith(b"gpt2cli ")


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from gpt2cli.cli import main; sys.argv = ['gpt2', 'info']\n"
        "try: main()\n"
        "finally: print({'torch', 'numpy', 'huggingface_hub.hf_api'} & set(sys.modules), "
        "file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stderr == b"set()\n"
