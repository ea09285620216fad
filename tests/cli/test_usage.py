"""Wrong use in one sentence, names from elsewhere, the environment, quiet and completion."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import Run, error_of

from gpt2cli import cli
from gpt2cli.cli import options
from gpt2cli.cli.usage import OPTION_ALIASES
from gpt2cli.weights import cache

GENERATE = ("generate", "a", "-t", "0", "-n", "3")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("generate --temprature 1", "no option '--temprature'; did you mean '--temperature'?"),
        ("generate --max-token 5", "no option '--max-token'; did you mean '--max-tokens'?"),
        ("generate --top_k 5", "no option '--top_k'; did you mean '--top-k'?"),
        ("generate --topk 5", "no option '--topk'; did you mean '--top-k'?"),
        ("generate --to 5", "no option '--to'; did you mean '--top-k' or '--top-p'?"),
        ("generate -V", "no option '-V'; did you mean '-v'?"),
        ("info --device cpu", "no option '--device'; gpt2 info --help lists them"),
        ("-V", "no option '-V'; did you mean '--version'?"),
        ("-m bard generate", "no option '-m'; the options of a command come after it"),
        ("generat", "there is no command 'generat'; did you mean 'gpt2 generate'?"),
        ("chat", "there is no command 'chat'; did you mean 'gpt2 repl'?"),
        ("run", "there is no command 'run'; did you mean 'gpt2 generate'?"),
        ("help", "there is no command 'help'; did you mean 'gpt2 --help'?"),
        ("version", "there is no command 'version'; did you mean 'gpt2 --version'?"),
        ("models ls", "there is no command 'ls'; did you mean 'gpt2 models'?"),
        ("models remove x", "there is no command 'remove'; did you mean 'gpt2 models rm'?"),
        ("models xyz", "there is no command 'xyz'; gpt2 models --help lists them"),
        ("generate -n many", "--max-tokens must be a whole number, not 'many'"),
        ("generate --top-k 1.5", "--top-k must be a whole number, not '1.5'"),
        ("generate --temperature=x", "--temperature must be a number, not 'x'"),
        ("generate --threads 0", "--threads must be at least 1, not"),
        ("serve --port 65536", "--port must be from 0 to 65535, not 65536"),
        ("serve --port -1", "--port must be from 0 to 65535, not -1"),
        ("generate -n", "-n needs a value"),
        ("generate --offline=3", "--offline takes no value"),
        ("generate two words", "one too many, 'words'; put quotes around a text of several words"),
        ("models pull a b", "an argument is one too many, 'b'"),
        ("models pull", "models pull needs NAME"),
        ("train", "train needs --out DIR"),
        ("generate --beams 2 --stop x -t 0", "--beams and --stop cannot go together"),
        ("generate --regex a --choice b", "--regex and --choice cannot go together"),
        ("generate --regex ((", "--regex: unclosed group"),
        ("generate a --device cuda:99", "choose --device cpu or auto"),
    ],
)
def test_wrong_use_is_one_sentence_that_says_what_was_meant(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, arguments: str, sentence: str
) -> None:
    monkeypatch.setattr("gpt2cli.system.device.may_have_gpu", lambda: False)
    done = run_main(*arguments.split(), code=2)
    assert done.stdout == b""
    assert re.fullmatch(r"gpt2: .*\n", error_of(done))
    assert sentence in error_of(done)


def test_what_was_typed_cannot_disguise_the_message(run_main: Run) -> None:
    for words in (["generate", "--\u202ex\x1b[31m"], ["\u202ex\x1b[31m"], ["-m", "\u202e\x1b"]):
        error = error_of(run_main(*words, code=2))
        assert "\u202e" not in error
        assert "\x1b" not in error


def test_texts_that_look_like_settings_stay_as_they_are(run_main: Run) -> None:
    assert "'max_tokens x'" in error_of(run_main("generate", "-m", "max_tokens x", code=2))
    assert "cannot read max_tokens:" in error_of(run_main("generate", "-f", "max_tokens", code=2))


def test_without_a_command_the_help_is_shown(run_main: Run) -> None:
    done = run_main(code=2)
    assert b"Commands:" in done.stderr


def test_help_shows_every_command_whole(run_main: Run) -> None:
    shown = run_main("--help", env={"COLUMNS": "80"}).stdout.decode()
    listed = shown[shown.index("Commands:") : shown.index("Exit codes")].rstrip().splitlines()[1:]
    assert all(line.endswith(".") and "..." not in line for line in listed)
    assert [line.split()[0] for line in listed][:3] == ["generate", "repl", "score"]


@pytest.mark.parametrize(
    "command",
    ["generate", "repl", "score", "inspect", "diff", "tokenize", "info", "models", "bench"],
)
def test_help_speaks_of_numbers_files_names_and_texts(run_main: Run, command: str) -> None:
    shown = run_main(command, "--help").stdout.decode()
    assert not re.search(r"^ +-.* <(?!\|)|env var", shown, re.MULTILINE)
    assert "--quiet" in shown
    assert not any(f"--{alias} " in shown for alias in OPTION_ALIASES)


# Names that other programs have.


@pytest.mark.parametrize(
    "typed",
    [
        "--max-new-tokens 3 --temp 0",
        "--n-predict=3 -t 0 --repeat-penalty 1",
        "--predict 3 --num-beams 1 --num-samples 1",
    ],
)
def test_options_answer_to_the_names_that_other_programs_have(
    run_main: Run, letters: Path, typed: str
) -> None:
    assert run_main("generate", "a", "-m", str(letters), *typed.split()).stdout == b"bcd"
    assert (
        run_main("generate", "-m", str(letters), *typed.split(), "--prompt", "a").stdout == b"bcd"
    )


def test_a_value_that_looks_like_an_alias_is_left_alone(run_main: Run, letters: Path) -> None:
    done = run_main(*GENERATE, "-m", str(letters), "--json", "--stop", "--temp")
    assert b'"stop": ["--temp"]' in done.stdout


# The environment.


def test_every_option_about_sampling_length_and_machine_has_a_variable(
    run_main: Run, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TOP_K": "3", "SEED": "7", "MODEL": str(letters), "SAMPLES": "2"}.items():
        monkeypatch.setenv(f"GPT2_{name}", value)
    done = run_main("generate", "a", "-n", "3", "--json")
    assert done.stdout.count(b'"top_k": 3') == done.stdout.count(b'"seed": 7') == 2
    monkeypatch.setenv("GPT2_XTC_THRESHOLD", "0.2")  # a default, for when XTC is asked for
    run_main("generate", "a", "-n", "3")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [("x", "GPT2_TOP_K must be a whole number, not 'x'"), ("0", "GPT2_TOP_K must be at least 1")],
)
def test_what_is_wrong_in_the_environment_is_named_as_there(
    run_main: Run, monkeypatch: pytest.MonkeyPatch, value: str, sentence: str
) -> None:
    monkeypatch.setenv("GPT2_TOP_K", value)
    assert sentence in error_of(run_main("generate", "a", code=2))


def test_a_misspelt_variable_is_told_of_and_those_of_others_are_not(
    run_main: Run, letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPT2_HOME", "GPT2_WEIGHTS_DIR", "GPT2_TEMPRATURE"):
        monkeypatch.setenv(name, "1")
    done = run_main(*GENERATE, "-m", str(letters))
    assert done.stdout == b"bcd"
    assert done.stderr == b"gpt2: GPT2_TEMPRATURE sets nothing; did you mean GPT2_TEMPERATURE?\n"
    assert run_main(*GENERATE, "-m", str(letters), "-q").stderr == b""


# Quiet.


def test_quiet_leaves_errors_alone_on_stderr(run_main: Run, letters: Path) -> None:
    long = ("generate", "a " * 100, "-m", str(letters), "-n", "3")
    assert b"tokens are dropped" in run_main(*long).stderr
    assert run_main(*long, "-q").stderr == b""
    assert b"tokens are dropped" in run_main(*long).stderr  # each run anew
    run_main("models", "-q", "path", "bard")
    assert b"unknown model" in run_main("generate", "-q", "-m", "no such", code=2).stderr


# Completion.


def completed(run_main: Run, typed: str) -> list[str]:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    return run_main(env={"_GPT2_COMPLETE": "complete_bash", **words}).stdout.decode().split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("gpt2 generate --model ba", ["bard"]),
        ("gpt2 generate --draft n", ["ngram"]),
        ("gpt2 diff -m gpt2-l", ["gpt2-large"]),
        ("gpt2 generate --no-rep", ["--no-repeat-ngram"]),
        ("gpt2 tok", ["tokenize"]),
        ("gpt2 generate --device c", ["cpu", "cuda"]),
        ("gpt2 generate --precision ", ["auto", "fp32", "bf16", "fp16", "int8", "int4"]),
        ("gpt2 generate --overflow ", ["slide", "error"]),
        ("gpt2 generate --precision int", ["int8", "int4"]),
        ("gpt2 generate -m gpt3", []),
        ("gpt2 generate --draft gpt3", []),
        ("gpt2 info -m gpt3", ["gpt3-175B", "gpt3"]),
        ("gpt2 info --compare gpt3-", ["gpt3-175B"]),
        ("gpt2 train --config gpt3-", ["gpt3-175B"]),
        ("gpt2 train --save-precision b", ["bf16"]),
        ("gpt2 inspect --show le", ["lens"]),
        ("gpt2 inspect --show lens,no", ["lens,norms"]),
        ("gpt2 generate --max-new", []),
        ("gpt2 models r", ["rm"]),
        ("gpt2 models path ba", ["bard"]),
    ],
)
def test_a_shell_completes_commands_options_and_their_values(
    run_main: Run, typed: str, offered: list[str]
) -> None:
    assert completed(run_main, typed) == offered


def test_cached_repositories_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = [cache.CachedModel(repo, "main", 1, tmp_path, True) for repo in ("a/b", "a/c", "x/y")]
    monkeypatch.setattr(cache, "cached_models", lambda: models)
    assert options.complete_cached("a/") == ["a/b", "a/c"]
    assert options.complete_model("x") == ["xl", "x/y"]


def test_help_says_of_each_command_what_its_own_help_begins_with(run_main: Run) -> None:
    for name, told in cli.COMMANDS.items():
        shown = run_main(name, "--help").stdout.decode().split("\n\n")
        assert " ".join(shown[1].split()).startswith(told)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_option_stands_under_a_heading(run_main: Run, command: str) -> None:
    shown = run_main(command, "--help").stdout.decode()
    headings = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert len(headings) == len(set(headings))
    if command != "models":
        assert "Options" not in headings
        assert headings[-1] == "Messages"
