"""`gpt2 generate` as a shell sees it: stdout, stderr, exit code, pipes and terminals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Gpt2, error_of

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
        (["--quantize", "int2"], "quantize must be int8 or int4, not 'int2'"),
        (["--device", "gpu"], "did you mean 'cuda'?"),
        (["--dtype", "float8"], "unknown dtype 'float8'"),
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
    gpt2: Gpt2, arguments: list[str], message: str
) -> None:
    done = gpt2("generate", "hello", *arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert message in error_of(done)


def test_wrong_values_are_found_without_importing_torch(tiny_directory: Path) -> None:
    script = (
        "import sys; from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    for arguments in (["--help"], ["generate", "--help"], ["generate", "x", "--top-p", "2"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, check=False
        )
        assert done.stderr.endswith(b"False\n"), arguments


def test_a_device_or_sample_count_that_is_not_here_is_refused(
    gpt2: Gpt2, tiny_directory: Path
) -> None:
    done = gpt2("generate", "x", "-m", str(tiny_directory), "--device", "cuda:99")
    assert done.returncode == 2
    assert "GPU" in error_of(done)
    done = gpt2("generate", "x", "-m", str(tiny_directory), "--samples", "1000000000")
    assert done.returncode == 2
    assert "memory" in error_of(done)


def test_overflow_error_refuses(gpt2: Gpt2, tiny_directory: Path) -> None:
    done = gpt2("generate", "x", "-m", str(tiny_directory), "-n", "32", "--overflow", "error")
    assert done.returncode == 2
    assert "exceed the context of 32" in error_of(done)


# Where the prompt comes from.


def prompt_of(gpt2: Gpt2, model: Path, *arguments: str | bytes, stdin: bytes = b"") -> str:
    done = gpt2(
        "generate", "-m", str(model), "-n", "1", "-t", "0", "--json", *arguments, stdin=stdin
    )
    assert done.returncode == 0, done.stderr
    prompt = json.loads(done.stdout)["prompt"]
    assert isinstance(prompt, str)
    return prompt


def test_piped_text_comes_first_less_one_newline(gpt2: Gpt2, letters: Path) -> None:
    assert prompt_of(gpt2, letters, stdin=b"piped\n\n") == "piped\n"
    assert prompt_of(gpt2, letters, "own", stdin=b"piped\n") == "piped\nown"
    assert prompt_of(gpt2, letters, "-", stdin=b"piped") == "piped"
    assert prompt_of(gpt2, letters, "--keep-newline", stdin=b"piped\n") == "piped\n"
    assert prompt_of(gpt2, letters, "own") == "own"
    assert prompt_of(gpt2, letters, stdin=b"windows\r\n") == "windows"
    assert prompt_of(gpt2, letters, stdin=b"kept\r") == "kept\r"


def test_the_prompt_can_be_a_file(gpt2: Gpt2, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes("häßlich\n".encode())
    file = ("--file", str(tmp_path / "prompt"))
    assert prompt_of(gpt2, letters, *file) == "häßlich"
    assert prompt_of(gpt2, letters, "own", *file, "--keep-newline") == "häßlich\n\nown"


def test_invalid_utf8_and_nothing_are_refused(gpt2: Gpt2, letters: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"abc\x80")
    for arguments, stdin, message in (
        ([], b"ab\xff", "stdin is not valid UTF-8 text (at byte 2)"),
        ([b"\xc3"], b"", "an argument is not valid UTF-8 text (at byte 0)"),
        (["--file", str(tmp_path / "prompt")], b"", "(at byte 3)"),
        ([], b"", "stdin is empty"),
        ([], b"\n", "stdin is empty"),
    ):
        done = gpt2("generate", "-m", str(letters), *arguments, stdin=stdin)
        assert done.returncode == 2
        assert message in error_of(done)


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
@pytest.mark.parametrize("encoding", ["", "ascii", "cp1252"])
def test_text_is_utf8_whatever_the_locale(
    gpt2: Gpt2, letters: Path, locale: str, encoding: str
) -> None:
    env = {"LC_ALL": locale, "PYTHONIOENCODING": encoding, "PYTHONCOERCECLOCALE": "0"}
    if not encoding:
        del env["PYTHONIOENCODING"]
    arguments = ("generate", "-m", str(letters), "-n", "1", "-t", "0", "--echo")
    done = gpt2(*arguments, "naïve 🙂".encode(), env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("naïve 🙂".encode())


# What is printed.


def test_stdout_is_the_text_and_nothing_else(gpt2: Gpt2, letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "5", "-t", "0")
    done = gpt2(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"bcdef"
    assert gpt2(*arguments, "--echo").stdout == b"abcdef"
    assert gpt2(*arguments, "--no-stream").stdout == b"bcdef"
    assert gpt2(*arguments, "--stop", "de").stdout == b"bc"


def test_verbose_tells_on_stderr_what_ran(gpt2: Gpt2, letters: Path) -> None:
    done = gpt2("generate", "a", "-m", str(letters), "-n", "5", "-v", "--seed", "7")
    assert b"on cpu in float32" in done.stderr
    assert b"tokens/s" in done.stderr
    drawn = gpt2("generate", "a", "-m", str(letters), "-n", "5", "-v")
    assert b"--seed " in drawn.stderr


def test_json_holds_what_is_needed_to_run_again(gpt2: Gpt2, tiny_directory: Path) -> None:
    arguments = ("generate", "ROMEO:", "-m", str(tiny_directory), "-n", "9", "--json", "-s", "2")
    done = gpt2(*arguments, "--top-k", "50", "--stop", "\t\t")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["sample"], second["sample"]) == (0, 1)
    assert first["text"] == Tokenizer.load(tiny_directory).decode(first["token_ids"])
    assert first["finish_reason"] in ("length", "eos")
    assert first["sampling"]["top_k"] == 50
    assert first["sampling"]["temperature"] == 0.8
    assert first["stop"] == ["\t\t"]
    assert {"seed", "model", "revision", "dtype", "device", "version", "timings"} <= first.keys()
    assert first["timings"]["time_to_first_token_s"] > 0
    again = gpt2(*arguments, "--top-k", "50", "--stop", "\t\t", "--seed", str(first["seed"]))
    assert [json.loads(line)["text"] for line in again.stdout.splitlines()] == [
        first["text"],
        second["text"],
    ]


@pytest.mark.skipif(not native.available(), reason=native.why_not())
def test_quantised_weights_say_the_same_where_the_model_is_sure(gpt2: Gpt2, letters: Path) -> None:
    arguments = ("generate", "a", "-m", str(letters), "-n", "5", "-t", "0", "--device", "cpu")
    for bits in ("int8", "int4"):
        done = gpt2(*arguments, "--quantize", bits, "--json")
        record = json.loads(done.stdout)
        assert (record["text"], record["quantize"]) == ("bcdef", bits)
        assert record["engine"] == "native"
    refused = gpt2(*arguments, "--quantize", "int8", "--dtype", "bfloat16")
    assert refused.returncode == 2
    assert b"--quantize works on a CPU in float32" in refused.stderr


def test_without_the_engine_the_text_is_the_same_and_quantising_is_refused(letters: Path) -> None:
    script = (
        "import sys; from gpt2cli.decoders import native; native.EXTENSION_SUFFIXES = [];"
        "from gpt2cli.cli import main; sys.argv = ['gpt2', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", script, "generate", "a", "-m", str(letters), "-t", "0"]
    options = {"capture_output": True, "stdin": subprocess.DEVNULL, "check": False}
    done = subprocess.run([*command, "-n", "5", "-v", "--device", "cpu"], **options)
    assert done.stdout == b"bcdef"
    assert b"NumPy engine" in done.stderr
    done = subprocess.run([*command, "--quantize", "int8", "--device", "cpu"], **options)
    assert done.returncode == 2
    assert b"--quantize needs the native engine: it was not built" in done.stderr


def test_samples_are_numbered_and_the_first_equals_a_run_alone(
    gpt2: Gpt2, tiny_directory: Path
) -> None:
    arguments = ("generate", "ROMEO:", "-m", str(tiny_directory), "-n", "9", "--seed", "0")
    alone, three = gpt2(*arguments).stdout, gpt2(*arguments, "-s", "3").stdout
    assert three.startswith(b"--- 1/3 ---\n" + alone)
    assert three.count(b"--- ") == 3


def test_defaults_can_be_set_in_the_environment(gpt2: Gpt2, letters: Path) -> None:
    env = {"GPT2_MODEL": str(letters), "GPT2_MAX_TOKENS": "3", "GPT2_TEMPERATURE": "0"}
    assert gpt2("generate", "a", env=env).stdout == b"bcd"
    assert gpt2("generate", "a", "-n", "1", env=env).stdout == b"b"


def test_a_prompt_longer_than_the_context_is_cut_with_a_notice(
    gpt2: Gpt2, tiny_directory: Path
) -> None:
    done = gpt2("generate", "-m", str(tiny_directory), "-n", "40", stdin=b"0 1 2 3 4 5 6 " * 20)
    assert done.returncode == 0
    assert b"tokens are dropped" in done.stderr


def test_special_text_is_the_special_token_unless_told_otherwise(gpt2: Gpt2, letters: Path) -> None:
    arguments = ("generate", "<|endoftext|>", "-m", str(letters), "-n", "1", "-t", "0")
    assert gpt2(*arguments).stdout == b"b"  # one token
    assert gpt2(*arguments, "--no-special").stdout != b"b"  # a dozen


def test_the_debug_option_shows_a_traceback(gpt2: Gpt2, tiny_directory: Path) -> None:
    done = gpt2("generate", "x", "-t", "-1", "--debug")
    assert done.returncode != 0
    assert b"Traceback" in done.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gpt2 generate --model ba", ["bard"]),
        ("gpt2 generate --draft n", ["ngram"]),
        ("gpt2 diff -m gpt2-l", ["gpt2-large"]),
        ("gpt2 generate --no-rep", ["--no-repeat-ngram"]),
        ("gpt2 tok", ["tokenize"]),
    ],
)
def test_a_shell_completes_commands_options_and_models(
    gpt2: Gpt2, typed: str, offered: list[str]
) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = gpt2(env={"_GPT2_COMPLETE": "complete_bash", **words})
    assert done.stdout.decode().split() == offered
