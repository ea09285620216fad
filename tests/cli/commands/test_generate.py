"""`gpt2 generate` as a shell sees it: stdout, stderr, exit code, pipes and terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Run, checked, error_of, needs_engine

import gpt2cli
from gpt2cli.decoders import native
from gpt2cli.text.tokenizer import Tokenizer

# Before any weights are read: wrong use, exit code 2.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "-1"], "--temperature must be 0"),
        (["-t", "nan"], "--temperature must be 0"),
        (["--top-p", "2"], "--top-p must be above 0 and at most 1, not 2.0"),
        (["--top-k", "0"], "--top-k must be at least 1"),
        (["--min-p", "1.5"], "--min-p must be between 0 and 1"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be a positive number"),
        (["--typical-p", "0"], "--typical-p must be above 0 and at most 1"),
        (["--frequency-penalty", "3"], "--frequency-penalty must be between -2 and 2"),
        (
            ["--xtc-probability", "0.5", "--xtc-threshold", "0.6"],
            "--xtc-threshold must be above 0 and at most 0.5",
        ),
        (["--xtc-threshold", "0.2"], "--xtc-threshold needs --xtc-probability"),
        (["--dry-base", "2"], "--dry-base needs --dry-multiplier"),
        (["--dry-breaker", "."], "--dry-breaker needs --dry-multiplier"),
        (["--mirostat-eta", "0.2"], "--mirostat-eta needs --mirostat-tau"),
        (["--mirostat-tau", "5", "--top-k", "3"], "--mirostat-tau takes the place of --top-k"),
        (["--min-tokens", "101"], "--min-tokens must be between 0 and --max-tokens (100)"),
        (["--bias", "London"], "a bias is written TOKEN=AMOUNT"),
        (["--logprobs", "2"], "--logprobs needs --json"),
        (["--logprobs", "-1", "--json"], "--logprobs must be between 0 and 100"),
        (["--length-penalty", "2"], "--length-penalty needs --beams"),
        (["--beams", "2", "-t", "1"], "--beams and --temperature cannot go together"),
        (["--draft-tokens", "3"], "--draft-tokens needs --draft"),
        (["--draft", "ngram", "--draft-tokens", "0"], "at least 1 token, not 0"),
        (["--draft", "ngram", "-s", "2"], "a draft and --samples cannot go together"),
        (["--draft", "ngram", "--beams", "2"], "a draft and --beams cannot go together"),
        (["--draft", "ngram", "--explain-sampling"], "which no --draft proposes"),
        (["--draft", "no such model"], "unknown model 'no such model'"),
        (["-n", "0"], "--max-tokens must be at least 1"),
        (["-s", "0"], "--samples must be at least 1"),
        (["--seed", "-5"], "--seed must be 0 or more"),
        (["--stop", ""], "stop string must not be empty"),
        (["--overflow", "wrap"], "--overflow must be slide or error"),
        (
            ["--precision", "int2"],
            "--precision must be auto, fp32, bf16, fp16, int8 or int4, not 'int2'",
        ),
        (["--device", "gpu"], "did you mean 'cuda'?"),
        (["--precision", "float8"], "fp16, int8 or int4, not 'float8'"),
        (["-m", "124m-"], "unknown model '124m-'; did you mean '124M'?"),
        (["-m", "no such model"], "unknown model 'no such model'"),
        (["-m", ""], "the name of the model is empty"),
        (["--append"], "--append needs a --file"),
        (
            ["--append", "--file", "missing.txt"],
            "--append needs a --file that is all of the prompt",
        ),
        (["--prompt", "a"], "there are two prompts"),
        (["--length-penalty", "0"], "--length-penalty needs --beams"),
        (["--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
        (["-m", "gpt2/x/y"], "unknown model 'gpt2/x/y'"),
        (["-m", "missing.yaml"], "cannot read missing.yaml"),
        (["-m", "/"], "holds no model"),
        (["--file", "missing.txt"], "cannot read missing.txt"),
    ],
)
def test_wrong_values_are_one_sentence_and_exit_code_2(
    run_main: Run, arguments: list[str], message: str
) -> None:
    done = run_main("generate", "hello", *arguments, code=2)
    assert done.stdout == b""
    assert message in error_of(done)


def test_wrong_values_are_found_without_importing_torch() -> None:
    script = (
        "import sys; from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments, code in ("--help", 0), ("generate --help", 0), ("generate x --top-p 2", 2):
        command = [sys.executable, "-c", script, *arguments.split()]
        done = checked(subprocess.run(command, capture_output=True, check=False), code)
        assert done.stderr.endswith(b"False\n"), arguments


def test_a_device_or_sample_count_that_is_not_here_is_refused(
    run_main: Run, tiny_directory: Path
) -> None:
    done = run_main("generate", "x", "-m", str(tiny_directory), "--device", "cuda:99", code=2)
    assert "GPU" in error_of(done)
    done = run_main("generate", "x", "-m", str(tiny_directory), "--samples", "1000000000", code=2)
    assert "memory" in error_of(done)


def test_overflow_error_refuses(run_main: Run, tiny_directory: Path) -> None:
    done = run_main(
        "generate", "x", "-m", str(tiny_directory), "-n", "32", "--overflow", "error", code=2
    )
    assert "exceed the context of 32" in error_of(done)


# Where the prompt comes from.


def prompt_of(run_main: Run, model: Path, *arguments: str | bytes, stdin: bytes = b"") -> str:
    done = run_main(
        "generate", "-m", str(model), "-n", "1", "-t", "0", "--json", *arguments, stdin=stdin
    )
    prompt = json.loads(done.stdout)["prompt"]
    assert isinstance(prompt, str)
    return prompt


def test_piped_text_comes_first_less_one_newline(run_main: Run, letters: Path) -> None:
    assert prompt_of(run_main, letters, stdin=b"piped\n\n") == "piped\n"
    assert prompt_of(run_main, letters, "own", stdin=b"piped\n") == "piped\nown"
    assert prompt_of(run_main, letters, "-", stdin=b"piped") == "piped"
    assert prompt_of(run_main, letters, "--keep-newline", stdin=b"piped\n") == "piped\n"
    assert prompt_of(run_main, letters, "own") == "own"
    assert prompt_of(run_main, letters, stdin=b"windows\r\n") == "windows"
    assert prompt_of(run_main, letters, stdin=b"kept\r") == "kept\r"


def test_the_prompt_can_be_a_file(run_main: Run, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes("häßlich\n".encode())
    file = ("--file", str(tmp_path / "prompt"))
    assert prompt_of(run_main, letters, *file) == "häßlich"
    assert prompt_of(run_main, letters, "own", *file, "--keep-newline") == "häßlich\n\nown"


def test_invalid_utf8_and_nothing_are_refused(run_main: Run, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"abc\x80")
    for arguments, stdin, message in (
        ([], b"ab\xff", "stdin is not valid UTF-8 text (at byte 2)"),
        ([b"\xc3"], b"", "an argument is not valid UTF-8 text (at byte 0)"),
        (["--file", str(tmp_path / "prompt")], b"", "(at byte 3)"),
        ([], b"", "stdin is empty"),
        ([], b"\n", "stdin is empty"),
    ):
        done = run_main("generate", "-m", str(letters), *arguments, stdin=stdin, code=2)
        assert message in error_of(done)


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
@pytest.mark.parametrize("encoding", ["", "ascii", "cp1252"])
def test_text_is_utf8_whatever_the_locale(
    run_process: Run, letters: Path, locale: str, encoding: str
) -> None:
    env = {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONCOERCECLOCALE": "0"}
    if not encoding:
        del env["PYTHONIOENCODING"]
    arguments = ("generate", "-m", str(letters), "-n", "1", "-t", "0", "--echo")
    done = run_process(*arguments, "naïve 🙂".encode(), env=env)
    assert done.stdout.startswith("naïve 🙂".encode())


# What is printed.


def test_stdout_is_the_text_and_nothing_else(run_process: Run, letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "5", "-t", "0")
    done = run_process(*arguments)
    assert done.stderr == b""
    assert done.stdout == b"bcdef"
    assert run_process(*arguments, "--echo").stdout == b"abcdef"
    assert run_process(*arguments, "--no-stream").stdout == b"bcdef"
    assert run_process(*arguments, "--stop", "de").stdout == b"bc"


def test_verbose_tells_on_stderr_what_ran(run_main: Run, letters: Path) -> None:
    done = run_main("generate", "a", "-m", str(letters), "-n", "5", "-v", "--seed", "7")
    assert b"on cpu in fp32" in done.stderr
    assert b"tokens/s" in done.stderr
    drawn = run_main("generate", "a", "-m", str(letters), "-n", "5", "-v")
    assert b"--seed " in drawn.stderr


def test_json_holds_what_is_needed_to_run_again(run_main: Run, tiny_directory: Path) -> None:
    arguments = ("generate", "ROMEO:", "-m", str(tiny_directory), "-n", "9", "--json", "-s", "2")
    done = run_main(*arguments, "--top-k", "50", "--stop", "\t\t")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["sample"], second["sample"]) == (0, 1)
    assert first["text"] == Tokenizer.load(tiny_directory).decode(first["token_ids"])
    assert first["finish_reason"] in ("length", "eos")
    assert first["sampling"]["top_k"] == 50
    assert first["sampling"]["temperature"] == 0.8
    assert first["stop"] == ["\t\t"]
    assert {
        "seed",
        "model",
        "revision",
        "precision",
        "device",
        "version",
        "timings",
    } <= first.keys()
    assert first["timings"]["time_to_first_token_s"] > 0
    again = run_main(*arguments, "--top-k", "50", "--stop", "\t\t", "--seed", str(first["seed"]))
    assert [json.loads(line)["text"] for line in again.stdout.splitlines()] == [
        first["text"],
        second["text"],
    ]


@needs_engine
def test_quantised_weights_say_the_same_where_the_model_is_sure(
    run_main: Run, letters: Path
) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "5", "-t", "0", "--device", "cpu")
    for bits in ("int8", "int4"):
        done = run_main(*arguments, "--precision", bits, "--json")
        record = json.loads(done.stdout)
        assert (record["text"], record["precision"]) == ("bcdef", bits)
        assert record["engine"] == "native"
    refused = run_main(*arguments, "--precision", "int8", "--device", "cuda", code=2)
    assert b"--precision int8 is for a CPU, not for cuda" in refused.stderr


def test_without_the_engine_the_text_is_the_same_and_quantising_is_refused(
    run_main: Run, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "why_not", lambda: "it was not built")
    arguments = ("generate", "a", "-m", str(letters), "-t", "0", "--device", "cpu")
    done = run_main(*arguments, "-n", "5", "-v")
    assert done.stdout == b"bcdef"
    assert b"NumPy engine" in done.stderr
    refused = run_main(*arguments, "--precision", "int8", code=2)
    assert b"--precision int8 needs the native engine: it was not built" in refused.stderr


def test_samples_are_numbered_and_the_first_equals_a_run_alone(
    run_main: Run, tiny_directory: Path
) -> None:
    arguments = ("generate", "ROMEO:", "-m", str(tiny_directory), "-n", "9", "--seed", "0")
    alone, three = run_main(*arguments).stdout, run_main(*arguments, "-s", "3").stdout
    assert three.startswith(b"--- 1/3 ---\n" + alone)
    assert three.count(b"--- ") == 3


def test_defaults_can_be_set_in_the_environment(run_main: Run, letters: Path) -> None:
    env = {"GPT2_MODEL": str(letters), "GPT2_MAX_TOKENS": "3", "GPT2_TEMPERATURE": "0"}
    assert run_main("generate", "a", env=env).stdout == b"bcd"
    assert run_main("generate", "a", "-n", "1", env=env).stdout == b"b"


def test_a_prompt_longer_than_the_context_is_cut_with_a_notice(
    run_main: Run, tiny_directory: Path
) -> None:
    done = run_main("generate", "-m", str(tiny_directory), "-n", "40", stdin=b"0 1 2 3 4 5 6 " * 20)
    assert b"tokens are dropped" in done.stderr


def test_special_text_is_the_special_token_unless_told_otherwise(
    run_main: Run, letters: Path
) -> None:
    arguments = ("generate", "<|endoftext|>", "-m", str(letters), "-n", "1", "-t", "0")
    assert run_main(*arguments).stdout == b"b"  # one token
    text = Tokenizer.load(letters).encode("<|endoftext|>", special=False)
    assert len(text) > 1
    letter = bytes([ord("a") + len(text)])
    assert run_main(*arguments, "--no-special").stdout == letter


def test_the_debug_option_shows_a_traceback(run_process: Run, tiny_directory: Path) -> None:
    done = run_process("generate", "x", "-t", "-1", "--debug", code=1)
    assert b"Traceback" in done.stderr


# Interventions.


def test_a_text_under_interventions_is_that_of_the_library(
    run_main: Run, tiny_directory: Path
) -> None:
    command = (
        "generate",
        "The quick",
        "-m",
        str(tiny_directory),
        "--seed",
        "4",
        "-n",
        "9",
        "--json",
    )
    parts = ("--ablate", "0.1", "--ablate", "mlp.1", "--ablate-with", "mean")
    steer = ("--steer", "fox", "--steer-away", "dog", "--steer-layer", "1")
    told = json.loads(run_main(*command, *parts, *steer, "--steer-strength", "2").stdout)
    model = gpt2cli.load(str(tiny_directory), device="cpu", precision="fp32")
    one = {"towards": "fox", "away": "dog", "layer": 1, "strength": 2.0}
    first = len(model.encode("The quick")) - 1
    plan = gpt2cli.Interventions.of(
        ["0.1", "mlp.1"], "mean", "The quick", [{**one, "first": first}]
    )
    assert told["interventions"] == plan.as_dict()
    assert told["engine"] == "PyTorch"
    expected = model.under(plan).generate("The quick", seed=4, max_tokens=9)
    assert told["token_ids"] == expected.token_ids
    plain = json.loads(run_main(*command).stdout)
    assert plain["token_ids"] != told["token_ids"]
    assert "interventions" not in plain


def test_drafts_beams_and_choices_heed_interventions(run_main: Run, tiny_directory: Path) -> None:
    command = ("generate", "The quick", "-m", str(tiny_directory), "-n", "9", "-t", "0", "--json")
    ablate = ("--ablate", "layer.0")
    told = json.loads(run_main(*command, *ablate).stdout)
    drafted = json.loads(run_main(*command, *ablate, "--draft", "ngram").stdout)
    assert drafted["token_ids"] == told["token_ids"]
    searched = json.loads(run_main(*command[:-3], "--beams", "1", *ablate, "--json").stdout)
    assert searched["token_ids"] == told["token_ids"]
    shares = [
        json.loads(run_main(*command, "--choice", "a", "--choice", "b", *more).stdout)["choice"]
        for more in ((), ablate)
    ]
    assert shares[0] != shares[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ablate", "9.0"], "there is no head 9.0: layers are 0 to 3"),
        (
            ["--ablate", "position.0", "-n", "600"],
            "hold as long as prompt and text fit the context",
        ),
        (["--steer", "a", "--steer-away", "b", "-n", "600"], "prompt and text fit the context"),
        (["--steer", "a"], "--steer needs --steer-away"),
        (["--ablate", "x"], "cannot ablate 'x'"),
    ],
)
def test_interventions_that_cannot_be_are_refused(
    run_main: Run, arguments: list[str], message: str
) -> None:
    done = run_main("generate", "ROMEO:", "-m", "bard", *arguments, code=2)
    assert message in done.stderr.decode()
    assert (done.stdout, done.stderr.count(b"\n")) == (b"", 1)


@needs_engine
def test_quantized_weights_cannot_be_changed_inside(run_main: Run) -> None:
    arguments = ("--precision", "int8", "--ablate", "1.1")
    done = run_main("generate", "ROMEO:", "-m", "bard", *arguments, code=2)
    assert b"has no --precision int8; use fp32, bf16 or fp16" in done.stderr
