"""Logits of the vocabulary alone, and what is said where they are no numbers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BYTES, Run, ScriptedDecoder, decoders, error_of, needs_engine, random_model

from gpt2cli.analysis import comparison, scoring
from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.decoders.native import quantize
from gpt2cli.decoders.pages import Chunk
from gpt2cli.errors import WeightsError
from gpt2cli.generation import beam, loop
from gpt2cli.generation.request import GenerationConfig
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint
from gpt2cli.weights.names import hub_name
from gpt2cli.weights.safetensors import read_safetensors, write_safetensors

IDS = [5, 17, 280, 3, 99]
SAYS = "give no numbers (NaN or infinity instead) within the first"


@pytest.fixture(scope="module")
def padded(
    tiny_directory: Path, tiny_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model whose vocabulary is padded beyond the tokenizer's 300 entries, with large logits."""
    directory = tmp_path_factory.mktemp("padded")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tiny_directory / name, directory)
    model = random_model(replace(tiny_config, vocab_size=320))
    model.token_embedding.weight.data[300:] *= 10
    checkpoint.save(model, directory, 0, torch.float32)
    return directory


def damage(source: Path, target: Path, parameter: str, row: int, value: float) -> Path:
    """A copy of a checkpoint with one number in the place of another."""
    shutil.copytree(source, target)
    tensors, metadata = read_safetensors(source / "model.safetensors")
    tensor = tensors[hub_name(parameter)]
    tensor.view(tensor.shape[0], -1)[row, 0] = value
    write_safetensors(tensors, target / "model.safetensors", metadata)
    return target


@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
def test_padding_is_no_part_of_any_logits(kind: str, padded: Path) -> None:
    full, cut = decoders(kind, padded)(), decoders(kind, padded)(size=300)
    a, b = full.open(), cut.open()
    assert np.array_equal(cut.read([Chunk(b, 0, IDS)]), full.read([Chunk(a, 0, IDS)])[:, :300])
    every = cut.read([Chunk(b, 2, IDS, every=True)])
    assert np.array_equal(every, full.read([Chunk(a, 2, IDS, every=True)])[:, :300])


def test_ids_beyond_the_vocabulary_are_never_chosen(padded: Path, run_main: Run) -> None:
    raw = decoders("numpy", padded)()
    assert raw.read([Chunk(raw.open(), 0, [0])]).argmax() >= 300  # as they are, they would be
    for options in (("-t", "0"), ("--beams", "2"), ("--seed", "1", "-t", "9")):
        done = run_main("generate", "-m", str(padded), *options, "--json", "The")
        assert max(json.loads(done.stdout)["token_ids"]) < 300


@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
def test_score_and_diff_agree_on_a_padded_vocabulary(
    kind: str, padded: Path, tiny_tokenizer: Tokenizer
) -> None:
    a, b = (decoders(kind, padded)(size=300) for _ in range(2))
    compared = [d.surprisals[0] for d in comparison.compare(a, b, IDS) if d.surprisals]
    (score,) = scoring.join(scoring.score_texts(a, tiny_tokenizer, [IDS], stride=16))
    assert compared == pytest.approx(score.bits[1:].tolist(), abs=1e-4)
    model = checkpoint.load(padded)
    log_p = model(torch.tensor([IDS]))[0, :, :300].log_softmax(-1) / math.log(2)
    wanted = [-float(log_p[t, token]) for t, token in enumerate(IDS[1:])]
    assert compared == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
def test_damage_is_found_where_it_is_first_seen(
    kind: str, value: float, tiny_directory: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    broken = damage(tiny_directory, tmp_path / "broken", "position_embedding.weight", 3, value)
    decoder = decoders(kind, broken)(size=300, name="mine")
    place = decoder.open()
    decoder.read([Chunk(place, 0, IDS[:2])])
    decoder.read([Chunk(place, 2, [9])])
    with pytest.raises(WeightsError, match=r"of mine give no numbers.* within the first 4 "):
        decoder.read([Chunk(place, 3, [9])])
    for every in (True, False):
        with pytest.raises(WeightsError, match="first 5 tokens"):
            decoder.read([Chunk(place, 0, IDS, every)])
    assert not recwarn.list


def damaged_after_three(sequence: int, text: Sequence[int]) -> NDArray:
    """The lowest ids are the most probable; the third token of the second text spoils one."""
    logits = np.arange(257.0)[::-1].astype(np.float32)
    if sequence == 1 and len(text) == 3:
        logits[99] = math.inf
    return logits


@pytest.mark.parametrize("sampling", [SamplingConfig(temperature=0), SamplingConfig(top_k=5)])
def test_damage_that_a_gpu_sees_is_told_at_the_token_it_is_seen_at(
    sampling: SamplingConfig,
) -> None:
    """The last one: no other step follows that could ask."""
    decoder = ScriptedDecoder(damaged_after_three, to_array=torch.from_numpy)
    config = GenerationConfig(sampling, max_tokens=2, samples=2)
    events = loop.generate(decoder, BYTES, [1, 2], config)
    assert [next(events).sample for _ in range(3)] == [0, 1, 0]
    with pytest.raises(WeightsError, match="first 3 tokens"):
        next(events)  # the second token of the second sample
    decoder = ScriptedDecoder(
        lambda _, text: damaged_after_three(1, text), to_array=torch.from_numpy
    )
    searched = GenerationConfig(SamplingConfig(temperature=0), max_tokens=2, beams=2)
    with pytest.raises(WeightsError, match="first 3 tokens"):
        list(beam.generate(decoder, BYTES, [1, 2], searched))


COMMANDS = [
    ("generate", "The", "-t", "0"),
    ("generate", "The", "--seed", "1"),
    ("generate", "The", "--beams", "2"),
    ("generate", "The", "-t", "0", "--draft", "ngram"),
    ("generate", "The", "--explain-sampling"),
    ("generate", "The", "--json", "--logprobs", "2"),
    ("generate", "The", "--choice", "a", "--choice", "b"),
    ("score", "--text", "The quick brown"),
    ("score", "--text", "The quick brown", "--json"),
    ("score", "--text", "The", "--choice", " quick", "--choice", " brown"),
    ("inspect", "The quick", "--json"),
]


@pytest.mark.parametrize("parameter", ["token_embedding.weight", "blocks.1.feed_forward.up.weight"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: "-".join(c[:1] + c[2:]))
def test_every_command_says_that_weights_are_damaged(
    command: tuple[str, ...], parameter: str, tiny_directory: Path, tmp_path: Path, run_main: Run
) -> None:
    broken = damage(tiny_directory, tmp_path / "broken", parameter, 0, math.nan)
    done = run_main(*command, "-m", str(broken), code=1)
    assert SAYS in error_of(done)
    assert b"NaN" not in done.stdout


def test_lines_and_diff_say_it_too(tiny_directory: Path, tmp_path: Path, run_main: Run) -> None:
    broken = damage(tiny_directory, tmp_path / "broken", "token_embedding.weight", 0, math.inf)
    done = run_main("score", "--lines", "-m", str(broken), stdin=b"The quick brown\n", code=1)
    assert done.stdout == b""
    assert SAYS in error_of(done)
    done = run_main("diff", "-m", str(tiny_directory), "-m", str(broken), "The quick", code=1)
    assert done.stdout == b""
    assert SAYS in error_of(done)


@needs_engine
@pytest.mark.parametrize(
    ("parameter", "theirs"),
    [
        ("blocks.1.feed_forward.up.weight", "h.1.mlp.c_fc.weight"),
        ("blocks.1.feed_forward.up.bias", "h.1.mlp.c_fc.bias"),
        ("position_embedding.weight", "wpe.weight"),
        ("final_norm.scale", "ln_f.weight"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_damaged_weights_are_not_coded(
    parameter: str, theirs: str, value: float, tiny_directory: Path, tmp_path: Path, run_main: Run
) -> None:
    broken = damage(tiny_directory, tmp_path / "broken", parameter, 5, value)
    for precision in ("bf16", "int8", "int4"):
        done = run_main("generate", "-m", str(broken), "--precision", precision, "The", code=1)
        assert f"{theirs} holds NaN or infinity" in error_of(done)
    config, tensors = checkpoint.read(broken)
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    with pytest.raises(WeightsError, match=f"{theirs} holds NaN"):
        quantize.encode(config, weights, "int8")
