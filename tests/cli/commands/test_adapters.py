"""`--adapter` in every command that opens a model, and the merged model that is exported."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from adapters import own
from helpers import Run, error_of, needs_engine
from transformers import GPT2LMHeadModel

import gpt2cli
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import find_spec
from gpt2cli.weights import checkpoint
from gpt2cli.weights.merging import Chosen


@pytest.fixture(scope="module")
def model(tiny_directory: Path) -> str:
    return str(tiny_directory)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> str:
    return str(own(tmp_path_factory.mktemp("tuned"), tiny_config))


COMMANDS = {
    "generate": ("generate", "The quick", "-n", "8", "--seed", "1", "--json"),
    "generate int8": ("generate", "The", "-n", "8", "--seed", "1", "--precision", "int8", "--json"),
    "score": ("score", "--text", "The quick brown", "--json"),
    "inspect": ("inspect", "The quick", "--show", "next", "--json"),
}


@needs_engine
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_with_an_adapter_is_that_of_the_merged_model(
    run_main: Run, model: str, tuned: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    def told(*arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run_main(*command, *arguments).stdout)
        return {name: found[name] for name in found if name not in ("model", "timings")}

    merged = str(tmp_path / "merged")
    done = run_main("models", "export", model, "--adapter", tuned, "-o", merged)
    assert done.stdout == f"{merged}\n".encode()
    found, wanted = told("-m", model, "--adapter", tuned), told("-m", merged)
    assert (found.pop("adapters"), wanted.pop("adapters")) == ([tuned], [])
    assert found == wanted
    plain = told("-m", model)
    assert plain.pop("adapters") == []
    assert plain != wanted


def test_bulk_completes_with_it_and_notices_another(
    run_main: Run, model: str, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    tuned, out = str(own(tmp_path / "tuned", tiny_config)), tmp_path / "out.jsonl"
    (tmp_path / "in.jsonl").write_text('{"prompt": "The quick"}\n')
    settings = ("-m", model, "-n", "6")
    command = ("bulk", str(tmp_path / "in.jsonl"), "-o", str(out), *settings, "--adapter")
    run_main(*command, tuned)
    row = json.loads(out.read_text())
    single = ("generate", "The quick", *settings, "--seed", str(row["seed"]), "--no-echo")
    wanted = json.loads(run_main(*single, "--adapter", tuned, "--json").stdout)
    assert row["completion"] == wanted["text"]
    assert row["completion"] != json.loads(run_main(*single, "--json").stdout)["text"]
    run_main(*command, tuned)  # it is finished
    assert "adapters" in error_of(run_main(*command, f"{tuned}=0.5", code=2))
    own(Path(tuned), tiny_config, seed=5)
    assert "weights" in error_of(run_main(*command, tuned, code=2))


def test_a_server_completes_with_it(run_main: Run, model: str, tuned: str, tmp_path: Path) -> None:
    opened = gpt2cli.load(model, adapters=[tuned], device="cpu", precision="fp32")
    plain = gpt2cli.load(model, device="cpu", precision="fp32")
    body = {"prompt": "The quick", "max_tokens": 8, "seed": 4}
    with servers.here(opened) as (port, _):
        found = servers.ask(port, "/v1/completions", body).json
    with servers.here(plain) as (port, _):
        other = servers.ask(port, "/v1/completions", body).json
    settings = {"max_tokens": 8, "seed": 4, "temperature": 1.0, "top_p": 1.0}
    assert found["choices"][0]["text"] == opened.generate("The quick", **settings).text
    assert found["choices"][0]["text"] != other["choices"][0]["text"]
    assert found["system_fingerprint"] != other["system_fingerprint"]


def test_diff_with_an_adapter_compares_a_model_with_itself(
    run_main: Run, model: str, tuned: str
) -> None:
    command = ("diff", "The quick brown", "-m", model, "--adapter", tuned)
    told = json.loads(run_main(*command, "--json").stdout)
    assert [facts["adapters"] for facts in told["models"]] == [[], [tuned]]
    assert told["summary"]["mean_kl"] > 0.01
    none = json.loads(run_main(*command[:-1], f"{tuned}=0", "--json").stdout)
    assert none["summary"]["mean_kl"] == pytest.approx(0, abs=1e-6)
    assert f"B is {model} with {tuned} in fp32" in run_main(*command).stdout.decode()


def test_bench_and_verbose_reports_name_it(run_main: Run, model: str, tuned: str) -> None:
    command = ("bench", "-m", model, "--context", "8", "--tokens", "2", "--repeats", "1")
    told = json.loads(run_main(*command, "--adapter", tuned, "--json").stdout)
    assert (told["adapters"], told["weights"]) == ([tuned], "real")
    said = run_main("generate", "The", "-m", model, "-n", "2", "-v", "--adapter", f"{tuned}=0.5")
    assert f"{model} with {tuned}=0.5 on cpu".encode() in said.stderr


def test_info_says_what_an_adapter_adds(run_main: Run, model: str, tuned: str) -> None:
    command = ("info", "-m", model, "--adapter", tuned)
    numbers = 2 * 2 * sum(i + o for i, o in [(24, 72), (24, 24), (24, 96), (96, 24)])
    [told] = json.loads(run_main(*command, "--json").stdout)["adapters"]
    assert (told["parameters"], told["ranks"], told["saved"]) == (numbers, [2], [])
    assert f"Adapter {tuned}: {numbers:,} parameters, rank 2 on attn.c_attn" in (
        run_main(*command).stdout.decode()
    )
    assert "one model" in error_of(run_main("info", "--all", "--adapter", tuned, code=2))


def test_repl_answers_with_it(run_main: Run, model: str, tuned: str) -> None:
    command = ("repl", "-m", model, "-n", "8", "--seed", "1")
    plain = run_main(*command, stdin=b"The quick\n").stdout
    assert run_main(*command, "--adapter", f"{tuned}=0", stdin=b"The quick\n").stdout == plain
    assert run_main(*command, "--adapter", tuned, stdin=b"The quick\n").stdout != plain


def test_a_merged_model_is_one_for_transformers(
    run_main: Run, model: str, tuned: str, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    run_main("models", "export", model, "--adapter", f"{tuned}=0.5", "--adapter", tuned, "-o", out)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in Path(model).iterdir())
    x = torch.arange(20)[None]
    adapters = [Chosen(Path(tuned), 0.5), Chosen(Path(tuned))]
    wanted = checkpoint.load(Path(model), adapters)(x)
    theirs = GPT2LMHeadModel.from_pretrained(out)
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs(x).logits, wanted, atol=1e-5, rtol=1e-5)
    assert list(tmp_path.glob(".*")) == []


def test_a_merged_model_replaces_nothing_unasked(
    run_main: Run, model: str, tuned: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "."):
        out = str(tmp_path / name)
        refused = run_main("models", "export", model, "--adapter", tuned, "-o", out, code=2)
        assert f"{out} exists; " in error_of(refused)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_what_is_no_adapter_is_one_sentence(
    run_main: Run, model: str, tuned: str, tmp_path: Path
) -> None:
    def refused(*arguments: str, code: int = 1) -> str:
        return error_of(run_main("generate", "x", *arguments, code=code))

    absent = refused("-m", model, "--adapter", "absent", code=2)
    assert absent == "gpt2: --adapter must be a directory; there is none named absent\n"
    assert "holds no adapter" in refused("-m", model, "--adapter", model)
    assert "give it as --adapter" in refused("-m", tuned, code=2)
    assert find_spec("124M") is not None
    # Of a model that is not here: nothing is fetched for an adapter that cannot fit.
    assert "another size" in refused("-m", "124M", "--adapter", tuned)
    bad = tmp_path / os.fsdecode(b"a\nb")
    bad.mkdir()
    assert "holds no adapter" in refused("-m", model, "--adapter", str(bad))
