"""`gpt2 inspect` as a shell sees it: text, JSON, the page in a browser, the picture."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Run
from transformers import GPT2LMHeadModel

from gpt2cli.analysis import inspection
from gpt2cli.analysis.inspection import Inspection
from gpt2cli.cli.commands.inspect import SECTIONS
from gpt2cli.cli.render import charts
from gpt2cli.cli.render.pages import inspection as page
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

PROMPT = "The quick brown </script><b>fox</b> jumps & 'I'm'"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def model(tiny_directory: Path) -> GPT2:
    return checkpoint.load(tiny_directory)


@pytest.fixture(scope="module")
def inspected(model: GPT2, tiny_tokenizer: Tokenizer) -> Inspection:
    return inspection.inspect(model, tiny_tokenizer, tiny_tokenizer.encode(PROMPT)[:32])


def printed(*parts: Any) -> str:
    from rich.console import Console

    console = Console(width=120, markup=False, highlight=False, emoji=False)
    with console.capture() as text:
        for part in parts:
            console.print(part)
    return text.get()


def chart(data: Inspection, section: str, **options: Any) -> str:
    settings = {"layers": [1], "head": None, "every": False} | options
    return printed(*charts.charts(data, [section], **settings))


# The numbers, put together.


def test_json_holds_what_transformers_computes(run_main: Run, tiny_directory: Path) -> None:
    done = run_main("inspect", "The quick", "-m", str(tiny_directory), "--token", "q", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    data = json.loads(done.stdout)
    assert set(SECTIONS) < set(data)
    theirs = GPT2LMHeadModel.from_pretrained(tiny_directory, attn_implementation="eager").eval()
    ids = [token["id"] for token in data["tokens"]]
    assert "".join(token["text"] for token in data["tokens"]) == data["prompt"] == "The quick"
    with torch.no_grad():
        output = theirs(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
        logits = output.logits[0, -1]
        after = theirs.transformer.ln_f(output.hidden_states[1][0])
        lens = theirs.lm_head(after).softmax(-1).sort(descending=True)
    best = logits.argsort(descending=True).tolist()
    assert [choice["id"] for choice in data["next"]] == best[:10]
    target = data["target"]
    assert target["text"] == "q"
    assert target["rank"] == 1 + best.index(target["id"])
    assert target["logit"] == pytest.approx(logits[target["id"]].item(), abs=1e-4)
    assert target["probability"] == pytest.approx(logits.softmax(-1)[target["id"]].item(), 1e-3)
    for layer, attention in enumerate(output.attentions):
        for head, theirs_weights in enumerate(attention[0].tolist()):
            for ours, reference in zip(data["attention"][layer][head], theirs_weights, strict=True):
                assert ours == pytest.approx(reference, abs=2e-5)
    lengths = [state[0].norm(dim=-1).tolist() for state in output.hidden_states[:-1]]
    assert data["activations"]["stream"][0] == pytest.approx(lengths[0], rel=1e-4)
    assert data["activations"]["stream"][1] == pytest.approx(lengths[1], rel=1e-4)
    for t, place in enumerate(data["lens"]["probabilities"][1]):
        assert place == pytest.approx(lens.values[t, :3].tolist(), rel=1e-3)
        assert data["lens"]["ids"][1][t] == lens.indices[t, :3].tolist()
    assert data["lens"]["target_rank"][-1] == target["rank"]
    assert data["lens"]["target_probability"][-1] == pytest.approx(target["probability"], rel=1e-4)


def test_a_window_keeps_the_numbers_and_says_what_went_before(
    model: GPT2, tiny_tokenizer: Tokenizer, inspected: Inspection
) -> None:
    ids = tiny_tokenizer.encode(PROMPT)[:32]
    part = inspection.inspect(model, tiny_tokenizer, ids, window=5)
    assert (part.first, part.ids) == (27, ids[-5:])
    assert part.target == inspected.target
    assert (part.attention == inspected.attention[..., -5:, -5:]).all()
    assert part.attention.sum(-1) + part.attention_before == pytest.approx(1, abs=1e-5)
    assert not inspected.attention_before.any()
    assert (part.norms.mean_in == inspected.norms.mean_in[:, -5:]).all()


def test_parts_are_sorted_and_add_up(inspected: Inspection) -> None:
    parts = inspected.contributions.parts()
    assert len(parts) == 3 + 2 * (3 + 2)
    assert sum(parts.values()) == pytest.approx(inspected.target.logit, abs=1e-4)
    sizes = [abs(value) for value in parts.values()]
    assert sizes == sorted(sizes, reverse=True)


# On paper.


def test_the_overview_is_short_and_right(run_process: Run, run_main: Run) -> None:
    done = run_process("inspect", "ROMEO:", "-m", "bard")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "Attention" not in text
    assert len(text.splitlines()) < 60
    data = json.loads(
        run_main("inspect", "ROMEO:", "-m", "bard", "--json", "--show", "next").stdout
    )
    ran = {"model", "repo_id", "revision", "device", "precision", "engine", "version"}
    assert set(data) == ran | {"prompt", "first", "tokens", "target", "next"}
    assert data["target"] == data["next"][0]
    assert data["target"]["text"] == "\n"  # what follows a speaker's name
    line = next(line for line in text.splitlines() if line.startswith("↵"))
    assert f"{data['target']['probability']:.2%}" in line
    assert f"{data['target']['logit']:.3f}" in line


def test_the_chosen_token_is_listed_even_where_it_is_improbable(
    model: GPT2, tiny_tokenizer: Tokenizer
) -> None:
    worst = inspection.inspect(model, tiny_tokenizer, [5, 6, 7], top=300).next[-1]
    data = inspection.inspect(model, tiny_tokenizer, [5, 6, 7], token=worst.id, top=3)
    assert data.target == worst
    assert worst.rank == 300
    lines = chart(data, "next").splitlines()
    assert len(lines) == 2 + 4 + 1
    assert lines[5].split()[0] == charts.label(worst.text)


def test_shades_follow_the_weights(inspected: Inspection) -> None:
    lines = chart(inspected, "attention", layers=[1], head=2).splitlines()
    rows = [line for line in lines if re.match(r" +\d+ ", line) and line[20] in " ░▒▓█"]
    weights = inspected.attention[1, 2]
    assert len(rows) == len(weights) == 32
    for t, (row, line) in enumerate(zip(weights, rows, strict=True)):
        assert int(line[:4]) == t
        for s, weight in enumerate(row[: t + 1]):
            bounds = (1 / 32, 1 / 8, 1 / 4, 1 / 2)
            assert line[20 + 2 * s] == " ░▒▓█"[sum(weight >= b for b in bounds)]
        assert line.split()[-2] == f"{row.max():.2f}"
    every = chart(inspected, "attention", layers=[0, 1], every=True)
    assert [f"head {layer}.{head}" in every for layer in (0, 1) for head in range(3)] == [True] * 6


def test_untrusted_text_is_shown_as_it_is(run_main: Run) -> None:
    done = run_main("inspect", "[red]a[/red]:smile:\x1b[2J", "-m", "bard", "--show", "all")
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    assert b":smile" not in done.stdout.replace(b"smile", b"")
    assert "␛".encode() in done.stdout


def test_labels_fit_their_width_and_show_blanks() -> None:
    assert charts.label(" a\n") == "·a↵"
    assert charts.label("x" * 20, 8) == "xxxxxxx…"
    assert charts.label("日" * 20, 8) == "日日日 …"  # two cells a character


# Sections, choices and what is wrong with them.


def test_sections_are_shown_in_the_order_asked_for(run_main: Run) -> None:
    done = run_main("inspect", "x", "-m", "bard", "--show", "norms, next", "--layer", "0")
    text = done.stdout.decode()
    places = [text.index(title) for title in ("Layer norms", "most probable", "layer 0, the mean")]
    assert places == sorted(places)
    assert "Logit lens" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "6"], "layer must be 0 to 5, not 6"),
        (["--layer", "-1"], "layer must be 0 to 5, not -1"),
        (["--head", "7"], "head must be 0 to 6, not 7"),
        (["--head", "1", "--all-heads"], "--head and --all-heads exclude each other"),
        (["--show", "lense"], "unknown section 'lense'"),
        (["--show", "lense"], "did you mean 'lens'?"),
        (["--token", "mind that"], "tokens, not one: "),
        (["--token", ""], "'' is 0 tokens, not one"),
        (["--html", "/nowhere/page.html"], "cannot write /nowhere/page.html"),
        (["--png", "/"], "cannot write /: it is a directory"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["-f", "missing.txt"], "cannot read missing.txt"),
    ],
)
def test_wrong_use_is_one_sentence(run_main: Run, arguments: list[str], message: str) -> None:
    done = run_main("inspect", "x", "-m", "bard", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_a_long_prompt_is_cut_with_the_usual_notice(run_main: Run, tiny_directory: Path) -> None:
    arguments = ("-m", str(tiny_directory), "--json", "--last", "4")
    done = run_main("inspect", *arguments, stdin=b"0 1 2 3 4 5 6 " * 20)
    assert done.returncode == 0
    assert b"tokens are dropped" in done.stderr
    data = json.loads(done.stdout)
    assert (data["first"], len(data["tokens"])) == (20, 4)


# The page and the picture.


@pytest.fixture(scope="module")
def web_page(inspected: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_bytes(page.render("<tiny>", PROMPT, inspected.as_dict(SECTIONS)))
    return path


def test_the_page_needs_nothing_else_and_escapes_all_text(web_page: Path) -> None:
    text = web_page.read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=|https?://|@import|url\(""", text)
    assert text.count("<script") == text.count("</script>") == 2
    assert "<b>" not in text
    assert f"<title>&lt;tiny&gt;: “{html.escape(PROMPT)}”</title>" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    shown = "".join(token["text"] for token in data["tokens"])
    assert shown == PROMPT[: len(shown)]
    assert len(data["tokens"]) == 32


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_in_a_browser_shows_what_a_token_attends_to(
    web_page: Path, inspected: Inspection, tmp_path: Path
) -> None:
    assert CHROMIUM is not None
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    switches += " disable-background-networking disable-component-update dump-dom"
    done = subprocess.run(
        [
            CHROMIUM,
            *(f"--{switch}" for switch in switches.split()),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"file://{web_page}#layer=1&head=2&token=20",
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    dom = done.stdout.decode()
    shown = dom.split('<div id="text"')[1].split("</div>")[0]
    spans = re.findall(r'<span([^>]*data-weight="([\d.]+)"[^>]*)>(.*?)</span>', shown, re.DOTALL)
    assert [html.unescape(text) for _, _, text in spans] == inspected.texts
    assert [float(weight) for _, weight, _ in spans] == pytest.approx(
        inspected.attention[1, 2, 20].tolist(), abs=6e-4
    )
    assert 'class="from heat"' in spans[20][0]
    assert 'data-tip="20 ' in spans[20][0]
    assert [span[0].count('tabindex="0"') for span in spans] == [1] + [0] * 31  # one stop
    for table, rows in (("map", 33), ("next", 11), ("lens", 4), ("parts", 3), ("norms", 6)):
        content = dom.split(f'<table id="{table}"')[1].split("</table>")[0]
        assert content.count("<tr") == rows, table


def test_files_are_written_whole_or_not_at_all(run_main: Run, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = run_main("inspect", "ROMEO:", "-m", "bard", "--html", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["page.html"]
    assert path.read_bytes().startswith(b"<!doctype html>")
    piped = run_main("inspect", "ROMEO:", "-m", "bard", "--html", "/dev/stdout")
    assert piped.stdout == path.read_bytes()
    full = run_main("inspect", "ROMEO:", "-m", "bard", "--html", "/dev/full")
    assert (full.returncode, full.stderr) == (
        1,
        b"gpt2: cannot write /dev/full: No space left on device\n",
    )


def picture(data: Inspection, *sections: str, prompt: str = PROMPT, **options: Any) -> bytes:
    pytest.importorskip("matplotlib")
    from gpt2cli.cli.render.picture import render

    settings = {"layers": [1], "head": None, "every": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that a font lacks, for example
        return render("<tiny>", prompt, data, sections, **settings)


@pytest.mark.parametrize("every", [False, True])
def test_a_picture_of_all_sections_has_margins(inspected: Inspection, every: bool) -> None:
    png = picture(inspected, *SECTIONS, layers=[0, 1] if every else [1], every=every)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width == 12 * 120
    assert height > 1500
    assert png == picture(inspected, *SECTIONS, layers=[0, 1] if every else [1], every=every)
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(png))
    pixels[40:-40, 40:-40] = pixels[0, 0]
    assert (pixels == pixels[0, 0]).all()


@pytest.mark.parametrize("option", [["--layer", "1"], ["--head", "0"], ["--all-heads"]])
def test_a_picture_shows_attention_where_an_option_asks_for_it(
    run_main: Run, tmp_path: Path, option: list[str]
) -> None:
    pytest.importorskip("matplotlib")
    heights = []
    for more in ([], option):
        path = tmp_path / "x.png"
        done = run_main("inspect", "ROMEO:", "-m", "bard", "--png", str(path), *more)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        heights.append(struct.unpack(">I", path.read_bytes()[20:24])[0])
    assert heights[1] - heights[0] >= 3 * 120


def test_a_picture_holds_any_token(model: GPT2, tiny_tokenizer: Tokenizer) -> None:
    ids = tiny_tokenizer.encode("$\\frac{$ $x^$ a b c d e f g")
    data = inspection.inspect(model, tiny_tokenizer, ids)
    strange = ["$\\frac{$", "日本語" * 9, "😀🏳️‍🌈", "x" * 300, "\u202e\x1b[31m", "\x00\x9b\u2066"]
    data.texts[: len(strange)] = strange
    data.lens.texts[0][-1][0] = "漢" * 40
    prompt = " ".join(strange)
    assert picture(data, "next", "lens", "attention", prompt=prompt, head=1).startswith(b"\x89PNG")


def test_a_picture_escapes_what_its_font_lacks() -> None:
    pytest.importorskip("matplotlib")
    from gpt2cli.cli.render import picture

    assert picture._label("a日", 20) == "a\\u65e5"
    assert picture._label("日" * 9) == "\\u65e5\\u65e5\\…"
    assert picture._label(" ↵\u202e", 20) == "·↵\\u202e"


def test_without_matplotlib_a_sentence_tells_how_to_get_it(tmp_path: Path) -> None:
    script = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else find(name, *a)\n"
        "from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", "x", "-m", "bard", "--png", str(tmp_path / "x")],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        b"gpt2: --png needs matplotlib; install it with: pip install 'gpt2cli[plot]'\n"
    )
