"""`gpt2 score` as a shell sees it."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import BARD_SIZE, Run, needs_engine, needs_full_device, on_terminal

from gpt2cli.config.spec import BUNDLED_DIR
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

BARD = ("-m", "bard")
MANY_WINDOWS = "The king is come. " * (BARD_SIZE.context_length // 2)
STRIDE = f"--stride must be from 1 to {BARD_SIZE.context_length - 1}"
TEXT = "ROMEO:\nWhat say'st thou? [bold]é[/] \x1b[31m"


def bits_of(text: str, *, bos: bool = False) -> list[float]:
    """−log₂ p of each token but the first, by model.py."""
    tokenizer = Tokenizer.load(BUNDLED_DIR / "bard")
    ids = torch.tensor([0] * bos + tokenizer.encode(text))
    logits = checkpoint.load(BUNDLED_DIR / "bard")(ids[None])[0, :-1]
    found: list[float] = (F.cross_entropy(logits, ids[1:], reduction="none") / math.log(2)).tolist()
    return found


def test_json_holds_the_figures_and_every_token(run_main: Run) -> None:
    done = run_main("score", *BARD, "--text", TEXT, "--json")
    assert done.stderr == b""
    found, expected = json.loads(done.stdout), bits_of(TEXT)
    assert found["surprisal_bits"][0] is None
    assert found["surprisal_bits"][1:] == pytest.approx(expected, abs=1e-3)
    assert found["tokens"] == len(expected) == len(found["token_ids"]) - 1
    mean = sum(expected) / len(expected)
    assert found["perplexity"] == pytest.approx(2**mean, rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(sum(expected) / found["bytes"], rel=1e-3)
    texts = Tokenizer.load(BUNDLED_DIR / "bard").decode
    assert found["bytes"] == len(TEXT.encode()) - len(texts(found["token_ids"][:1]).encode())
    assert found["token_texts"] == [texts([i]) for i in found["token_ids"]]
    assert {"model", "device", "precision", "version", "stride", "ranks"} <= found.keys()


def test_top_lists_the_most_surprising_tokens_of_each_text(
    run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    long.write_text("My lord, the king is dead. " * 120 + "xyz qqq")  # more than a window
    short.write_text("My [b]lord[/b]")
    names = (str(long), str(short))
    records = [
        json.loads(r) for r in run_main("score", *BARD, "--json", *names).stdout.splitlines()
    ]
    done = run_main("score", *BARD, "--json", "--top", "4", *names)
    for record, full in zip(map(json.loads, done.stdout.splitlines()), records, strict=True):
        bits = full["surprisal_bits"]
        order = sorted(range(1, len(bits)), key=lambda i: -bits[i])[:4]
        assert [token["position"] for token in record["top"]] == order
        for token in record["top"]:
            at = token["position"]
            assert (token["bits"], token["rank"]) == (bits[at], full["ranks"][at])
            assert (token["id"], token["text"]) == (full["token_ids"][at], full["token_texts"][at])
    monkeypatch.setenv("COLUMNS", "200")
    table = run_main("score", *BARD, "--top", "4", *names).stdout.decode().splitlines()
    assert table[0].split() == ["text", "token", "bits", "rank", "position"]
    expected = [t for record in map(json.loads, done.stdout.splitlines()) for t in record["top"]]
    assert [int(row.split()[-1].replace(",", "")) for row in table[1:]] == [
        token["position"] for token in expected
    ]
    assert [row.split()[0] for row in table[1:]] == [names[0]] * 4 + [names[1]] * 4


def test_with_bos_the_first_token_counts_too(run_main: Run) -> None:
    found = json.loads(run_main("score", *BARD, "--text", "Lord", "--bos", "--json").stdout)
    assert found["surprisal_bits"][1:] == pytest.approx(bits_of("Lord", bos=True), abs=1e-3)
    assert found["bytes"] == 4


def test_csv_has_a_row_a_token(run_main: Run) -> None:
    done = run_main("score", *BARD, "--csv", stdin=b'say "no",\nlord\n')
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert "".join(row["text"] for row in rows) == 'say "no",\nlord'
    assert (rows[0]["bits"], rows[0]["rank"], rows[0]["name"]) == ("", "", "stdin")
    expected = bits_of('say "no",\nlord')
    assert [float(row["bits"]) for row in rows[1:]] == pytest.approx(expected, abs=1e-3)


def test_csv_of_a_long_text_counts_on_from_window_to_window(run_main: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text("My lord, the king is come. " * 120 + name)
    names = [str(tmp_path / name) for name in ("one", "two")]
    done = run_main("score", *BARD, *names, "--csv", "--stride", "100")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    for name in names:
        own = [row for row in rows if row["name"] == name]
        assert "".join(row["text"] for row in own) == Path(name).read_text()
        assert [row["index"] for row in own] == [str(i) for i in range(len(own))]
        assert len(own) > BARD_SIZE.context_length
        assert all(row["bits"] and row["rank"] for row in own[1:])


def test_files_have_a_row_each_and_one_together(run_main: Run, tmp_path: Path) -> None:
    names = [tmp_path / "one", tmp_path / "two"]
    for name, text in zip(names, ("My lord, the king.\n", "To be, or not to be"), strict=True):
        name.write_text(text)
    done = run_main("score", *BARD, *map(str, names), "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["name"] for record in records] == [str(name) for name in names]
    table = run_main("score", *BARD, *map(str, names), "-", code=2).stderr
    assert b"stdin is empty" in table
    lines = run_main("score", *BARD, *map(str, names), "-v")
    rows = [line.split() for line in lines.stdout.decode().splitlines()]
    assert [row[0] for row in rows] == ["text", str(names[0]), str(names[1]), "total"]
    tokens = sum(record["tokens"] for record in records)
    bits = sum(record["tokens"] * record["bits_per_token"] for record in records)
    assert rows[-1][1] == str(tokens)
    assert float(rows[-1][3]) == pytest.approx(2 ** (bits / tokens), abs=0.01)
    assert b"engine" in lines.stderr
    assert b"tokens/s" in lines.stderr


@needs_engine
def test_fewer_bits_score_nearly_the_same(run_main: Run) -> None:
    text = b"My lord, the king is come to speak with thee. " * 20
    exact, quantized = (
        json.loads(run_main("score", *BARD, "--json", *options, stdin=text).stdout)
        for options in ((), ("--precision", "int8", "--device", "cpu"))
    )
    assert quantized["bits_per_byte"] == pytest.approx(exact["bits_per_byte"], rel=0.02)
    assert quantized["bits_per_byte"] != exact["bits_per_byte"]
    assert quantized["precision"] == "int8"


# Lines.

LINES = b"My lord, I am.\n\nxq zv xq zv jj\r\nThe king is come."


def test_lines_are_scored_by_themselves(run_main: Run) -> None:
    done = run_main("score", *BARD, "--lines", stdin=LINES)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["text"] for record in records] == LINES.decode().replace("\r", "").split("\n")
    assert records[1]["perplexity"] is None
    for i in (0, 2, 3):
        expected = bits_of(records[i]["text"])
        mean = sum(expected) / len(expected)
        assert records[i]["perplexity"] == pytest.approx(2**mean, rel=1e-3)
        assert records[i]["tokens"] == len(expected)


def test_lines_within_the_limits_pass_unchanged(run_main: Run) -> None:
    below = run_main("score", *BARD, "--lines", "--max-perplexity", "100", stdin=LINES)
    assert below.stdout == b"My lord, I am.\nThe king is come."
    assert below.stderr == b""
    above = run_main("score", *BARD, "--lines", "--min-perplexity", "100", stdin=LINES)
    assert above.stdout == b"xq zv xq zv jj\r\n"


def test_lines_of_json_keep_what_else_they_hold(run_main: Run) -> None:
    lines = b'{"id": 1, "body": "My lord, I am."}\n{"body": "The king", "x": [2]}\n'
    done = run_main("score", *BARD, "--lines", "--field", "body", stdin=lines)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records[0]["id"] == 1
    assert records[1]["x"] == [2]
    assert all(record["perplexity"] > 1 for record in records)
    passed = run_main(
        "score", *BARD, "--lines", "--field", "body", "--max-perplexity", "1e9", stdin=lines
    )
    assert passed.stdout == lines
    wrong = run_main("score", *BARD, "--lines", "--field", "text", stdin=lines, code=2)
    assert b"line 1 has no text in a field 'text'" in wrong.stderr


def test_rows_of_jsonl_are_scored_in_order_and_wrong_ones_say_why(run_main: Run) -> None:
    texts = ["My lord, I am.", "x", MANY_WINDOWS, "", "I am."]
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    lines = [json.dumps(row).encode() for row in rows]
    lines[1:1] = [
        b"no",
        b'{"id": 9, "text": 1}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b" ",
        b"\xff",
    ]
    done = run_main("score", *BARD, "--jsonl", "--stride", "128", stdin=b"\n".join(lines), code=1)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record.get("error") for record in found[1:6]] == [
        "line 2 is not JSON",
        "line 3 has no text in a field 'text'",
        "line 4 is no JSON object",
        "line 5 has half a character in its field 'text'",
        "line 7 is not valid UTF-8 text (at byte 0)",
    ]
    assert (found[2]["id"], found[2]["text"]) == (9, 1)
    scored = found[:1] + found[6:]
    assert [{"id": record["id"], "text": record["text"]} for record in scored] == rows
    assert "error" not in scored[0]
    assert [record["perplexity"] is None for record in scored] == [False, True, False, True, False]
    assert done.stderr == b"gpt2: 5 of 10 lines could not be scored\n"


def test_a_row_is_scored_as_it_is_alone(run_main: Run) -> None:
    """Its neighbours change not a bit of it."""
    texts = ["My lord, I am.", MANY_WINDOWS, "I am.", "To be, or not to be"]
    lines = [json.dumps({"body": text, "x": 1}).encode() + b"\n" for text in texts]
    together = run_main("score", *BARD, "--jsonl", "--field", "body", stdin=b"".join(lines))
    alone = [run_main("score", *BARD, "--jsonl", "--field", "body", stdin=line) for line in lines]
    assert together.stdout == b"".join(done.stdout for done in alone)
    assert together.stdout.count(b"bits_per_byte") == 4


def test_with_a_limit_wrong_rows_are_named_on_stderr(run_main: Run) -> None:
    lines = b'{"text": "My lord, I am."}\n{}\n{"text": "xq zv xq zv jj"}\n'
    done = run_main("score", *BARD, "--jsonl", "--max-perplexity", "100", stdin=lines, code=1)
    assert done.stdout == lines.splitlines(keepends=True)[0]
    assert done.stderr.decode().splitlines() == [
        "gpt2: line 2 has no text in a field 'text'",
        "gpt2: 1 of 3 lines could not be scored",
    ]


def test_the_lines_of_one_file_do_not_run_into_the_next(run_main: Run, tmp_path: Path) -> None:
    for name, text in (("a", "My lord, I am."), ("b", "The king is come.")):
        (tmp_path / name).write_text(text)
    files = (str(tmp_path / "a"), str(tmp_path / "b"))
    done = run_main("score", *BARD, "--lines", "--max-perplexity", "1e9", *files)
    assert done.stdout == b"My lord, I am.\nThe king is come."


def test_an_odd_field_or_file_name_is_no_error(run_main: Run, tmp_path: Path) -> None:
    done = run_main("score", *BARD, "--lines", "--field", "", stdin=b'{"": "My lord"}')
    assert json.loads(done.stdout)["tokens"] > 0
    odd = os.fsencode(tmp_path) + b"/\xff.txt"
    Path(os.fsdecode(odd)).write_text("My lord, I am.")
    for view in ([], ["--json"], ["--csv"], ["--heatmap"]):
        done = run_main("score", *BARD, odd, *view)
        assert done.stderr == b""


@pytest.mark.parametrize("line", [b"no", b'{"a":' + b"[" * 100_000, b'{"a": "b", "c": NaN}'])
def test_a_line_that_is_no_json_is_named(run_main: Run, line: bytes) -> None:
    done = run_main("score", *BARD, "--lines", "--field", "a", stdin=line, code=2)
    assert done.stdout == b""
    assert done.stderr == b"gpt2: line 1 is not JSON; --field is for JSON objects\n"


def test_nothing_is_written_before_what_cannot_be_scored(run_main: Run, tmp_path: Path) -> None:
    for name, text in (("a", "My lord, I am."), ("b", "")):
        (tmp_path / name).write_text(text)
    done = run_main("score", *BARD, "--csv", str(tmp_path / "a"), str(tmp_path / "b"), code=2)
    assert done.stdout == b""
    own = run_main("score", *BARD, str(tmp_path / "a"), "--html", str(tmp_path / "a"), code=2)
    assert b"it is read, too" in own.stderr
    assert (tmp_path / "a").read_text() == "My lord, I am."


def test_a_line_is_answered_before_the_next_one_comes() -> None:
    command = [sys.executable, "-m", "gpt2cli", "score", *BARD, "--lines"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        for line in ("My lord, I am.", "The king is come."):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == line
        process.stdin.close()
        assert process.wait(30) == 0


# Alternatives.


def test_choices_are_ranked(run_main: Run) -> None:
    choices = [" lord", " king", ", queen"]
    options = [word for choice in choices for word in ("--choice", choice)]
    done = run_main("score", *BARD, "--text", "My good", *options, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    expected = {c: -sum(bits_of("My good" + c)) + sum(bits_of("My good")) for c in choices}
    for record in records:
        own = expected[record["text"]] * math.log(2)
        assert record["log_probability"] == pytest.approx(own, abs=1e-3)
        assert record["per_byte"] == pytest.approx(own / len(record["text"]), abs=1e-3)
    assert [r["text"] for r in records] == sorted(choices, key=lambda c: -expected[c])
    table = run_main("score", *BARD, *options, stdin=b"My good\n").stdout.decode().splitlines()
    assert [line.split()[0] for line in table] == ["choice", "lord", "king", ","]
    shares = [float(re.findall(r"([\d.]+)%", line)[0]) for line in table[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)


# In colours.


def test_a_heat_map_colours_each_token_and_says_what_it_means() -> None:
    arguments = ("score", *BARD, "--text", TEXT)
    for option, label in (("--heatmap", "16 or more"), ("--ranks", "top 1000")):
        code, screen = on_terminal(*arguments, option, env={"TERM": "xterm-256color"})
        assert code == 0
        assert "\x1b[31m" not in screen
        plain = re.sub(r"\x1b\[[\d;]*m", "", screen)
        assert "ROMEO:\nWhat say'st thou? [bold]é[/] ␛[31m\n" in plain
        assert label in plain
        assert "perplexity" in plain
        assert len(set(re.findall(r"48;5;(\d+)", screen))) >= 4


def test_a_page_is_one_that_a_browser_shows(run_main: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    evil = "The king <b>is</b> </pre><script>document.title = 'owned'</script>\n& come"
    done = run_main("score", *BARD, "--text", evil, "--html", str(page))
    assert (done.stdout, done.stderr) == (b"", b"")
    source = page.read_text(encoding="utf-8")
    assert source.count("<script") == 1  # its own
    assert "http" not in source.replace("http-equiv", "")
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("there is no Chromium here")
    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            page.as_uri(),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    ).stdout.decode()
    body = shown.split('<pre class="text"')[1].partition(">")[2].split("</pre>")[0]
    assert html.unescape(re.sub(r"<[^>]*>", "", body)) == evil
    assert "<title>bard: “The king &lt;b&gt;is&lt;/b&gt;" in shown


# What cannot be.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "a", "--lines", "--csv"], "are different answers"),
        (["--text", "a", "--max-perplexity", "5"], "go with --lines"),
        (["--lines", "--max-perplexity", "nan"], "--max-perplexity must be above 0, not nan"),
        (["--text", "a", "--stride", str(BARD_SIZE.context_length)], STRIDE),
        (["--text", "a", "--stride", "0"], STRIDE),
        (["--text", "a"], "only --bos scores a single token, which is all of text"),
        (["--text", ""], "text is empty"),
        (["missing.txt"], "there is no file 'missing.txt'; --text takes a text itself"),
        (["--lines", "missing.txt"], "there is no file 'missing.txt'"),
        (["/"], "cannot read /"),
        (["--text", "a", "--top", "3", "--csv"], "are different answers"),
        (["--text", "a", "--choice", "b", "--top", "3", "--json"], "leave out --choice"),
        (["--text", "a", "--choice", ""], "a choice must not be empty"),
        (["--text", "a", "--choice", "b" * 2000], "a choice is longer than the model's context"),
        (["--text", "a", "--html", "x", "--lines"], "--html shows whole texts"),
        (["--text", "a", "--jsonl"], "--jsonl reads files or stdin; leave out --text"),
        (["--lines", "--jsonl"], "--lines and --jsonl are different files; give one of them"),
        (["--jsonl", "--json"], "--choice, --jsonl, --csv, --heatmap, --top and --json are"),
        (["--text", "a", "--lines"], "--lines reads files or stdin; leave out --text"),
        (["--text", "ab c", "--html", "/no/such/page.html"], "/no/such is no directory"),
        (
            ["--text", "ab c", "--precision", "int2"],
            "--precision must be auto, fp32, bf16, fp16, int8 or int4",
        ),
        ([], "stdin is empty"),
    ],
)
def test_wrong_use_is_one_sentence(run_main: Run, arguments: list[str], message: str) -> None:
    done = run_main("score", *BARD, *arguments, code=2)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@needs_full_device
def test_a_closed_pipe_and_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("My lord, I am.\n" * 2000)
    command = f"{sys.executable} -m gpt2cli score -m bard --lines {tmp_path / 'lines'}"
    script = f"{command} | head -c 10; echo ${{PIPESTATUS[0]}}; {command} > /dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[-3:] == ['{"text": "141', "1", ""]
    assert done.stderr == b"gpt2: cannot write the output: No space left on device\n"


SURPRISING = "The king is come to xq zv."


@pytest.mark.parametrize("option", ["--heatmap", "--ranks"])
def test_without_colours_a_heat_map_has_marks(option: str, run_main: Run) -> None:
    shown = run_main("score", "-m", "bard", "--text", SURPRISING, option).stdout.decode()
    text, legend, figures = shown.splitlines()
    assert "\x1b" not in shown
    assert re.sub(r"\{\d\}", "", text) == SURPRISING
    marks = set(re.findall(r"\{\d\}", text))
    assert len(marks) > 1
    assert marks <= set(re.findall(r"\{\d\}", legend))
    assert figures.startswith("perplexity ")


@pytest.mark.parametrize("option", ["--heatmap", "--ranks"])
def test_sixteen_colours_keep_classes_apart(
    option: str, run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    shown = run_main("score", "-m", "bard", "--text", SURPRISING, option).stdout.decode()
    legend = next(line for line in shown.splitlines() if "bits: " in line or "rank: " in line)
    backgrounds = re.findall(r";(4\d)m", legend)
    assert len(set(backgrounds)) == len(backgrounds) == (5 if option == "--heatmap" else 4)


def test_a_page_is_all_that_html_makes(run_main: Run, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    done = run_main("score", "-m", "bard", "--text", SURPRISING, "--ranks", "--html", str(page))
    assert done.stdout == b""
    assert "top 1000" in page.read_text()
