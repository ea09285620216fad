"""`gpt2 replay`: what other commands wrote comes again; exit codes, tables, sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import Run, error_of, needs_engine

BARD = ("-m", "bard", "--device", "cpu")


def generated(run_main: Run, *arguments: str) -> bytes:
    """What `gpt2 generate --json` prints."""
    return run_main("generate", "ROMEO:", *BARD, "--json", "-n", "9", *arguments).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("-s", "3", "--seed", "4"),
        ("-t", "0"),
        ("--beams", "3", "-s", "2"),
        ("--draft", "ngram", "-n", "40", "--seed", "2"),
        ("--draft", "bard", "-n", "20", "--seed", "2"),
        ("--stop", ",", "--bias", " the=-inf", "--min-tokens", "2", "--ignore-eos"),
        ("--choice", " yes", "--choice", " no", "--mirostat-tau", "5"),
        ("--dry-multiplier", "0.8", "--dry-breaker", "x", "--xtc-probability", "0.5", "-k", "20"),
        ("--ablate", "2.3", "--ablate-with", "mean", "--steer", " thou", "--steer-away", " you"),
    ],
    ids=" ".join,
)
def test_what_generate_wrote_comes_again_with_all_its_options(
    run_main: Run, arguments: tuple[str, ...]
) -> None:
    record = generated(run_main, *arguments)
    found = json.loads(run_main("replay", "-", "--json", stdin=record).stdout)
    count = len(record.splitlines())
    assert found["summary"] == {
        "texts": count,
        "same": count,
        "different": 0,
        "errors": 0,
        "skipped": 0,
    }


def test_a_prompt_that_was_read_without_special_tokens_is_read_so_again(run_main: Run) -> None:
    command = ("generate", "<|endoftext|>A", *BARD, "-n", "3", "--seed", "1", "--json")
    plain = run_main(*command, "--no-special").stdout
    assert (
        json.loads(plain)["prompt_token_ids"]
        != json.loads(run_main(*command).stdout)["prompt_token_ids"]
    )
    assert b"the same: all of 3 tokens" in run_main("replay", "-", stdin=plain).stdout


def test_a_record_of_a_version_that_wrote_no_tokens_of_the_prompt_is_read(run_main: Run) -> None:
    record = json.loads(generated(run_main, "--seed", "3"))
    for name in ("prompt_token_ids", "compiled", "processor"):
        del record[name]
    done = run_main("replay", "-", stdin=json.dumps(record).encode())
    assert b"the same" in done.stdout


@needs_engine
def test_where_a_text_parts_both_are_shown_with_what_is_not_as_it_was(run_main: Run) -> None:
    record = generated(run_main, "--seed", "1")
    done = run_main("replay", "-", "--precision", "int4", stdin=record, code=1)
    shown = done.stdout.decode()
    assert "different from token 2 on (the first is 0), by bard on cpu in int4" in shown
    assert "recorded  ROMEO:↵I[·know]·not" in shown
    assert "now       ROMEO:↵I[·did]" in shown
    assert "precision was fp32 and is now int4" in shown


def test_many_texts_are_a_table_with_a_count_below(run_main: Run) -> None:
    lines = generated(run_main, "-s", "2", "--seed", "1").splitlines()
    other = json.loads(lines[1])
    other["token_ids"][3], other["version"] = 300, "0.0.1"
    data = b"\n".join([lines[0], json.dumps(other).encode(), b'{"a": 1}'])
    done = run_main("replay", "-", stdin=data, code=2)
    first, second, third, *rest = done.stdout.decode().splitlines()[1:]
    assert first.split() == ["line", "1", "the", "same"]
    assert second.split()[:3] == ["line", "2", "different"]
    assert third.split() == ["line", "3", "not", "repeated"]
    assert any(line.startswith("line 3: it is no record") for line in rest)
    assert "version was 0.0.1 and is now" in done.stdout.decode()
    assert rest[-1] == "1 of 3 texts the same, 1 different, 1 not repeated"


def test_a_text_that_differs_though_nothing_has_changed_says_so(run_main: Run) -> None:
    record = json.loads(generated(run_main, "--seed", "1"))
    record["token_ids"][0] = 300
    done = run_main("replay", "-", stdin=json.dumps(record).encode(), code=1)
    assert b"nothing that the record names has changed" in done.stdout


INPUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rows.jsonl": (
        '{"prompt": "ROMEO:", "samples": 2, "bias": {" the": "-inf"}}\n'
        '{"prompt": [65, 66], "temperature": 0.5, "stop": ",", "logprobs": 1}\n'
        '{"prompt": "A", "seed": 17, "row": 3}\n',
        ("--top-k", "40", "--bias", " a=1.5"),
    ),
    "rows.csv": (
        "who,temperature,samples\nROMEO,0.5,2\nJULIET,,\n",
        ("--prompt-template", "{who}:"),
    ),
    "lines.txt": ("ROMEO:\n\nJULIET:\n", ("--lines", "--regex", "[a-z ]+")),
    "fields.jsonl": ('{"text": "ROMEO:", "prompt": 5}\n', ("--field", "text", "--unordered")),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_what_bulk_wrote_comes_again(run_main: Run, tmp_path: Path, name: str, output: str) -> None:
    if output.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    text, arguments = INPUTS[name]
    (tmp_path / name).write_text(text)
    run_main(
        "bulk", str(tmp_path / name), "-o", str(tmp_path / output), *BARD, "-n", "7", *arguments
    )
    found = json.loads(run_main("replay", str(tmp_path / output), "--json").stdout)
    assert {one["status"] for one in found["texts"]} == {"same"}, found
    assert found["summary"]["texts"] >= len(text.split("\n")) - 2


def test_one_line_of_bulk_needs_the_run_that_it_is_of(run_main: Run, tmp_path: Path) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "ROMEO:"}\n{"prompt": "A", "top_k": -1}\n')
    run_main("bulk", str(source), "-o", str(output), *BARD, "-n", "5", code=1)
    line, failed = output.read_bytes().splitlines()
    assert "OUTPUT.run.json: name that as --run" in error_of(
        run_main("replay", "-", stdin=line, code=2)
    )
    run = ("--run", f"{output}.run.json")
    assert b"the same" in run_main("replay", "-", *run, stdin=line).stdout
    assert "it failed when it was written" in error_of(
        run_main("replay", "-", *run, stdin=failed, code=2)
    )
    assert b"1 of 1 text the same" in run_main("replay", str(output)).stdout


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "holds no record"),
        (b"ROMEO", "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[1, 2]", "it is no record"),
        (b"[" * 100_000, "it is no JSON"),
        (b'{"prompt": "A"}', "it is no record"),
        (b'{"custom_id": "a", "response": {}}', "a line of OpenAI's batches"),
        (b'{"format": "gpt2-page", "version": 2}', "version 2"),
        (b'{"format": "gpt2-page", "version": 1, "tree": {"branches": {}}}', "holds no record"),
        (b'{"request": {}, "response": {"error": {}}}', "the response is an error"),
        (b'{"sampling": {}, "prompt": "A"}', "it has no text"),
    ],
)
def test_what_is_no_record_is_told_in_a_sentence(run_main: Run, data: bytes, sentence: str) -> None:
    assert sentence in error_of(run_main("replay", "-", stdin=data, code=2))


@pytest.mark.parametrize(
    "model",
    ["", " ", "nope", "a\0b", "x" * 300, "/" * 3000, "../" * 99, "x" * 5000, "a b", "-", "~"],
)
def test_a_model_that_a_record_names_and_nobody_has_is_told_in_a_sentence(
    run_main: Run, model: str
) -> None:
    record: dict[str, Any] = {
        "prompt": "A",
        "text": "B",
        "token_ids": [1],
        "model": model,
        "seed": 1,
        "sampling": {},
        "max_tokens": 1,
        "finish_reason": "length",
        "precision": "fp32",
    }
    done = run_main("replay", "-", "--offline", "-q", stdin=json.dumps(record).encode(), code=2)
    error_of(done)


def test_adapters_are_opened_only_where_the_command_names_them(
    run_main: Run, tmp_path: Path
) -> None:
    record = json.loads(generated(run_main, "--seed", "1")) | {"adapters": [str(tmp_path)]}
    done = run_main("replay", "-", stdin=json.dumps(record).encode(), code=2)
    assert f"it was written with the adapter {str(tmp_path)!r}: name it with --adapter" in error_of(
        done
    )


def test_a_model_that_this_program_does_not_know_is_named_before_it_is_opened(
    run_main: Run, tiny_directory: Path
) -> None:
    record = run_main("generate", "The", "-m", str(tiny_directory), "-n", "3", "--json").stdout
    done = run_main("replay", "-", stdin=record)
    assert done.stderr.decode() == f"gpt2: the model is {str(tiny_directory)!r}\n"


def test_a_device_that_is_not_here_is_replaced_and_named(
    run_main: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2cli.system.device.may_have_gpu", lambda: False)
    record = json.loads(generated(run_main, "--seed", "1")) | {"device": "cuda:3"}
    record["token_ids"][0] = 300
    done = run_main("replay", "-", stdin=json.dumps(record).encode(), code=1)
    assert b"device was cuda:3 and is now cpu" in done.stdout
