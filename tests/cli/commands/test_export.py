"""`gpt2 models export`, and `-m file.gguf` in every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ggufs
import pytest
from adapters import own
from helpers import Run, error_of, needs_engine

from gpt2cli.config.model import ModelConfig

SEEDED = ("-n", "12", "--seed", "1", "--device", "cpu", "ROMEO:")


def said(done: bytes) -> str:
    text: str = json.loads(done)["text"]
    return text


def test_a_model_goes_out_as_gguf_and_comes_back(run_main: Run, tmp_path: Path) -> None:
    out = str(tmp_path / "bard.gguf")
    done = run_main("models", "export", "bard", "--precision", "F32", "-o", out)
    assert done.stdout.decode() == f"{out}\n"
    texts = [
        said(run_main("generate", "-m", name, "--json", *SEEDED).stdout) for name in ("bard", out)
    ]
    assert texts[0] == texts[1]
    assert ggufs.metadata(Path(out))["general.name"] == "bard"


def lasting(output: bytes, model: str) -> str:
    """What a command prints, without the model's name and how long it took."""
    return re.sub(r'"timings": {[^}]*}', "", output.decode().replace(model, ""))


@needs_engine
def test_every_command_takes_a_gguf_file(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    """And says what it says of the directory that the file was made of."""
    path = str(ggufs.write(tiny_directory, tmp_path / "tiny.gguf"))
    for command, arguments in (
        ("tokenize", ["--text", "To be"]),
        ("score", ["--text", "To be"]),
        ("inspect", ["To be"]),
        ("generate", ["--precision", "int8", *SEEDED]),
    ):
        records = [
            lasting(run_main(command, "-m", name, "--json", *arguments).stdout, name)
            for name in (path, str(tiny_directory))
        ]
        assert records[0] == records[1], command
    described = [
        json.loads(run_main("info", "-m", name, "--json").stdout)["config"]
        for name in (path, str(tiny_directory))
    ]
    assert described[0] == described[1]


def test_the_converted_copy_of_a_file_is_found_and_removed(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    path = ggufs.write(tiny_directory, tmp_path / "tiny.gguf")
    place = Path(run_main("models", "path", str(path)).stdout.decode().strip())
    assert (place / "model.safetensors").is_file()
    run_main("models", "export", str(path), "-o", str(tmp_path / "hub"))
    assert (tmp_path / "hub" / "vocab.json").is_file()
    run_main("models", "rm", str(path))
    assert not place.exists()
    assert path.is_file()
    assert "does not come from the hub" in error_of(run_main("models", "pull", str(path), code=2))


def test_the_format_follows_the_name_of_the_output(
    run_main: Run, tiny_directory: Path, tmp_path: Path
) -> None:
    for name, arguments in (("a.gguf", ()), ("b", ("--format", "gguf"))):
        run_main("models", "export", str(tiny_directory), "-o", str(tmp_path / name), *arguments)
        assert (tmp_path / name).read_bytes()[:4] == b"GGUF"
    run_main("models", "export", str(tiny_directory), "-o", str(tmp_path / "c"))
    assert (tmp_path / "c" / "config.json").is_file()


def test_adapters_are_merged_or_written_alone(
    run_main: Run, tiny_directory: Path, tmp_path: Path, tiny_config: ModelConfig
) -> None:
    adapter, model = str(own(tmp_path / "lora", tiny_config)), str(tiny_directory)
    merged, alone = str(tmp_path / "merged.gguf"), str(tmp_path / "lora.gguf")
    run_main("models", "export", model, "--adapter", adapter, "-o", merged)
    expected = run_main("generate", "-m", model, "--adapter", adapter, "--json", *SEEDED)
    found = run_main("generate", "-m", merged, "--json", *SEEDED)
    assert said(found.stdout) == said(expected.stdout)
    run_main("models", "export", model, "--adapter", adapter, "--adapter-only", "-o", alone)
    assert ggufs.metadata(Path(alone))["general.type"] == "adapter"
    refused = run_main("generate", "-m", alone, *SEEDED, code=1)
    assert "holds no model: it is of type 'adapter'" in error_of(refused)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x", "--precision", "q8_0"], "--precision must be fp32, bf16 or fp16, not 'q8_0'"),
        (["-o", "x.gguf", "--precision", "q8"], "did you mean 'q8_0'"),
        (["-o", "x.gguf", "--precision", "int8"], "--precision must be fp32, fp16, bf16, q8_0"),
        (["-o", "x", "--format", "onnx"], "--format must be gguf or hf, not 'onnx'"),
        (["-o", "x.gguf", "--adapter-only"], "--adapter-only needs one --adapter"),
        (["-o", "missing/x.gguf"], "missing is no directory"),
        (["-o", "."], "exists; --overwrite replaces it"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    run_main: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(run_main("models", "export", "bard", *arguments, code=2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_that_exists_is_kept_unless_it_may_go(run_main: Run, tmp_path: Path) -> None:
    out = tmp_path / "bard.gguf"
    out.write_bytes(b"mine")
    arguments = ("models", "export", "bard", "-o", str(out))
    assert "exists; --overwrite replaces it" in error_of(run_main(*arguments, code=2))
    assert out.read_bytes() == b"mine"
    run_main(*arguments, "--overwrite")
    assert out.read_bytes()[:4] == b"GGUF"
