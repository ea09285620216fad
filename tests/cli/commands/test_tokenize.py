"""`gpt2 tokenize` as a shell sees it, with bard's vocabulary and one from a hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tokenizers
from helpers import BARD_SIZE, Run, on_terminal
from hub_server import HubServer

from gpt2cli.config.spec import BUNDLED_DIR

BARD = ("-m", "bard")
BEYOND = BARD_SIZE.vocab_size  # the first id that is none


def expected_ids(text: str) -> list[int]:
    """What Hugging Face's tokenizers makes of a text, with bard's files."""
    directory = BUNDLED_DIR / "bard"
    files = (str(directory / "vocab.json"), str(directory / "merges.txt"))
    theirs = tokenizers.ByteLevelBPETokenizer(*files)
    theirs.add_special_tokens(["<|endoftext|>"])
    return list(theirs.encode(text).ids)


TEXT = "Naïve 🙂 kings,\n\tand  [bold]queens[/]\x1b[31m<|endoftext|>end"


def test_ids_are_those_of_another_tokenizer(run_main: Run) -> None:
    done = run_main("tokenize", *BARD, "--ids", TEXT)
    assert done.stderr == b""
    assert [int(word) for word in done.stdout.split()] == expected_ids(TEXT)
    assert 0 in expected_ids(TEXT)
    assert 0 not in map(
        int, run_main("tokenize", *BARD, "--ids", "--no-special", TEXT).stdout.split()
    )


def test_json_lists_pieces_that_add_up_to_the_text(run_main: Run) -> None:
    tokens = json.loads(run_main("tokenize", *BARD, "--json", TEXT).stdout)
    assert [token["id"] for token in tokens] == expected_ids(TEXT)
    assert b"".join(bytes(token["bytes"]) for token in tokens) == TEXT.encode()
    assert all(t["text"] == bytes(t["bytes"]).decode("utf-8", "replace") for t in tokens)


def test_a_pipe_gets_an_id_and_a_visible_piece_a_line(run_main: Run) -> None:
    done = run_main("tokenize", *BARD, stdin="é [b]\x1b\n\n".encode())
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert [int(number) for number, _ in lines] == expected_ids("é [b]\x1b\n")
    assert "".join(piece for _, piece in lines) == "\\xc3\\xa9·[b]␛↵"


def test_the_text_is_a_file_an_argument_or_stdin_as_everywhere(
    run_main: Run, tmp_path: Path
) -> None:
    (tmp_path / "text").write_bytes(b"a king\n")
    file = ("--file", str(tmp_path / "text"))

    def ids(*arguments: str, stdin: bytes = b"") -> list[int]:
        return [
            int(w)
            for w in run_main("tokenize", *BARD, "--ids", *arguments, stdin=stdin).stdout.split()
        ]

    king = expected_ids("a king")
    assert ids("a king") == ids(*file) == ids("-", stdin=b"a king\n") == king
    assert ids(*file, "--keep-newline") == expected_ids("a king\n")
    assert ids("a king", stdin=b"two\n") == expected_ids("two\na king")


def test_files_go_by_name_as_in_score_and_a_text_of_that_name_by_an_option(
    run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "king.txt").write_bytes(b"a king\n")
    (tmp_path / "queen").write_bytes(b"a queen")

    def ids(*arguments: str) -> list[list[int]]:
        lines = run_main(
            "tokenize", *BARD, "--ids", *arguments, stdin=b"not read"
        ).stdout.splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    assert ids("king.txt") == [expected_ids("a king")]
    assert ids("king.txt", "--keep-newline") == [expected_ids("a king\n")]
    assert ids("king.txt", "queen") == [expected_ids("a king"), expected_ids("a queen")]
    assert ids("--text", "king.txt") == [expected_ids("king.txt")]


def test_count_is_a_number_and_a_table_for_several_files(run_main: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a king\n")
    (tmp_path / "b").write_text("a king and a queen and a king " * 9)
    one, many = (len(expected_ids(t)) for t in ("a king", "a king and a queen and a king " * 9))
    names = [str(tmp_path / name) for name in "ab"]
    assert run_main("tokenize", *BARD, "--count", names[0]).stdout == f"{one}\n".encode()
    assert run_main("tokenize", *BARD, "--count", stdin=b"a king\n").stdout == f"{one}\n".encode()
    assert run_main("tokenize", *BARD, "--count", "--text", "a king").stdout == f"{one}\n".encode()
    lines = run_main("tokenize", *BARD, "--count", *names).stdout.decode().splitlines()
    assert [line.split() for line in lines] == [
        [str(one), names[0]],
        [str(many), names[1]],
        [str(one + many), "total"],
    ]
    assert len({line.index(line.split()[1]) for line in lines}) == 1  # the numbers are aligned


def test_decoding_gives_the_bytes_back_even_of_half_a_character(run_main: Run) -> None:
    ids = expected_ids("🙂 a\n")
    spaced = " ".join(map(str, ids))
    for listed in (spaced, str(ids), "\n".join(map(str, ids))):
        done = run_main("tokenize", *BARD, "--decode", stdin=listed.encode())
        assert (done.stdout, done.stderr) == ("🙂 a\n".encode(), b"")
    zeros = run_main("tokenize", *BARD, "--decode", *(f"{i:030}" for i in ids), stdin=b"")
    assert zeros.stdout == "🙂 a\n".encode()
    done = run_main("tokenize", *BARD, "--decode", *map(str, ids[:2]))
    assert done.stdout == "🙂".encode()[: len(done.stdout)]
    assert 0 < len(done.stdout) < 4
    assert (
        json.loads(run_main("tokenize", *BARD, "--decode", "--json", spaced).stdout)[0]["id"]
        == ids[0]
    )


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (
            ["--decode", "5", str(BEYOND)],
            b"",
            2,
            f"there is no token {BEYOND}; ids go from 0 to {BEYOND - 1}",
        ),
        (["--decode", "9" * 5000], b"", 2, "there is no token 999"),
        (["--decode"], b"12 x7", 2, "'x7' is not a token id"),
        (["--decode", "½"], b"", 2, "is not a token id"),
        (["--decode", "--ids", "5"], b"", 2, "--decode and --ids exclude each other"),
        (["--ids", "--json", "x"], b"", 2, "--ids and --json exclude each other"),
        (["two", "words"], b"", 2, "there is no file 'two'; --text takes a text itself"),
        (["esay.txt"], b"", 2, "there is no file 'esay.txt'; --text takes a text itself"),
        (["texts/esay"], b"", 2, "there is no file 'texts/esay'"),
        (["--count", "a text"], b"", 2, "there is no file 'a text'"),
        (["--count", "--ids", "--text", "a"], b"", 2, "--ids and --count exclude each other"),
        (["--decode", "--text", "5"], b"", 2, "--decode and --text exclude each other"),
        ([], b"", 2, "stdin is empty"),
        ([], b"a\xff", 2, "stdin is not valid UTF-8 text (at byte 1)"),
        (["-m", "gpt2-medum", "x"], b"", 2, "did you mean 'gpt2-medium'?"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    run_main: Run, arguments: list[str], stdin: bytes, code: int, message: str
) -> None:
    done = run_main("tokenize", *BARD, *arguments, stdin=stdin, code=code)
    assert done.stdout == b""
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


def test_only_the_vocabulary_is_fetched_and_generate_fetches_the_rest(
    run_process: Run, tiny_directory: Path
) -> None:
    names = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
    with HubServer() as server:
        server.add_repo("someone/tiny", {n: (tiny_directory / n).read_bytes() for n in names})
        env = {"HF_ENDPOINT": server.url}
        arguments = ("tokenize", "-m", "someone/tiny", "--ids", "ROMEO")
        first = run_process(*arguments, env=env)
        assert sorted(set(server.fetched())) == ["config.json", "merges.txt", "vocab.json"]
        asked = len(server.requests)
        assert run_process(*arguments, "--offline", env=env).stdout == first.stdout
        generate = ("generate", "-m", "someone/tiny", "-n", "1", "x")
        offline = run_process(*generate, "--offline", env=env, code=1)
        assert b"is not in the cache" in offline.stderr
        assert len(server.requests) == asked
        run_process(*generate, env=env)
        assert "model.safetensors" in server.fetched()


def test_a_terminal_shows_boxes_and_the_count_and_no_control_characters() -> None:
    env = {"COLUMNS": "40", "TERM": "xterm"}
    code, screen = on_terminal("tokenize", *BARD, TEXT, env=env)
    assert code == 0
    assert "\x1b[31m" not in screen
    assert "\x1b[30;46m" in screen  # a background of our own
    plain = re.sub(r"\x1b\[[\d;]*m", "", screen)
    assert "\x1b" not in plain
    *boxes, count = plain.splitlines()
    assert count.startswith(f"gpt2: {len(expected_ids(TEXT))} tokens, {len(TEXT.encode())} bytes")
    assert all(len(line) <= 40 for line in boxes)
    numbers = [word for line in boxes[2::4] for word in re.findall(r"\d+", line)]
    assert [int(word) for word in numbers] == expected_ids(TEXT)
    shown = "".join("".join(line.split("│")).replace(" ", "") for line in boxes[1::4])
    assert "·[bold]queens[/]␛[31m<|endoftext|>end" in shown
