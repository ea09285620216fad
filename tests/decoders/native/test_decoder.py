"""The native CPU decoder against model.py: shapes, instruction sets, numbers of threads."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SHARED_DATA, needs_engine, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import BUNDLED_DIR
from gpt2cli.decoders import native, pages
from gpt2cli.decoders.native import abi
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import DeviceError
from gpt2cli.sampling import nucleus
from gpt2cli.system import memory
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint
from gpt2cli.weights.random_weights import RandomWeights

SOURCES = Path(native.__file__).parent

pytestmark = needs_engine

# Widths that fill no register, or some exactly; one head; odd contexts; no QKV bias.
CONFIGS = [
    ModelConfig(vocab_size=77, context_length=37, emb_dim=40, n_heads=1, n_layers=2),
    ModelConfig(vocab_size=300, context_length=64, emb_dim=30, n_heads=6, n_layers=1),
    ModelConfig(vocab_size=257, context_length=65, emb_dim=192, n_heads=3, n_layers=2),
    ModelConfig(129, 48, emb_dim=112, n_heads=7, n_layers=2, qkv_bias=False),
]


def model_of(config: ModelConfig) -> Any:
    """Random weights, smaller in a wide model: its logits shall be of the size of a real one's."""
    model = random_model(config)
    for p in model.parameters():
        p.mul_(min(1, (40 / config.emb_dim) ** 0.5) if p.dim() > 1 else 1)
    return model


def weights_of(model: Any) -> dict[str, Any]:
    return {name: p.numpy() for name, p in model.named_parameters()}


def make(model: Any, tokens: int = 4096, **options: Any) -> Any:
    return EngineDecoder(model.config, weights_of(model), tokens, **options)


def random_ids(config: ModelConfig, rows: int) -> Any:
    shape = (rows, config.context_length)
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def read(decoder: Decoder, ids: Any, prompt: int) -> Any:
    """Logits after the prompt and after each token that follows. (B, T) → (B, T − prompt + 1, V)"""
    rows = [decoder.open() for _ in ids]
    pieces = [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]
    return np.stack(
        [
            decoder.read([Chunk(s, a, ids[i, a:b].tolist()) for i, s in enumerate(rows)])
            for a, b in pieces
        ],
        axis=1,
    )


def levels() -> list[str]:
    best = native.library().engine_best_level() if native.available() else 0
    return list(native.LEVELS[: best + 1])


def compile_alone(*lines: str) -> None:
    """Let the C++ compiler check these lines, which may include the engine's headers."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    options = ("-std=c++17", "-fsyntax-only", f"-I{SOURCES}", "-x", "c++", "-")
    source = "\n".join([*lines, ""]).encode()
    done = subprocess.run([compiler, *options], input=source, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"C{c.emb_dim}")
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_are_those_of_the_model(config: ModelConfig, level: str, rows: int) -> None:
    model = model_of(config)
    ids = random_ids(config, rows)
    expected = model(ids)[:, 18:].numpy()
    assert np.abs(read(make(model, level=level), ids, 19) - expected).max() < 1e-4


def test_a_prompt_longer_than_a_block_is_read_in_parts() -> None:
    config = ModelConfig(vocab_size=64, context_length=700, emb_dim=32, n_heads=2, n_layers=2)
    model = model_of(config)
    ids = random_ids(config, 2)
    expected = model(ids)[:, -2:].numpy()
    assert np.abs(read(make(model), ids, 699) - expected).max() < 1e-4


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"C{c.emb_dim}")
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision_is_the_model_with_rounded_matrices(
    config: ModelConfig, level: str, precision: str, dtype: torch.dtype
) -> None:
    """Everything else stays in fp32; 1 and 12 rows are read in different ways."""
    model = model_of(config)
    engine = make(model, precision=precision, level=level)
    for name, p in model.named_parameters():
        if p.dim() > 1 and name != "position_embedding.weight":
            p.copy_(p.to(dtype).float())
    for rows in (1, 12):
        ids = random_ids(config, rows)
        expected = model(ids)[:, 18:].numpy()
        assert np.abs(read(engine, ids, 19) - expected).max() < 1e-4


def test_half_precision_has_subnormal_numbers_too() -> None:
    """Weights of fp16 below 2⁻¹⁴ keep their value at every level of instructions."""
    config = ModelConfig(vocab_size=40, context_length=8, emb_dim=16, n_heads=2, n_layers=1)
    model = model_of(config)
    model.token_embedding.weight.mul_(2e-6)
    rounded = model_of(config)
    rounded.load_state_dict(model.state_dict())
    rounded.token_embedding.weight.copy_(rounded.token_embedding.weight.half().float())
    assert rounded.token_embedding.weight.count_nonzero() > 300
    for p in (*model.blocks.parameters(), *rounded.blocks.parameters()):
        p.zero_()
    expected = rounded(random_ids(config, 1))[:, 3:].numpy()
    for level in levels():
        found = read(make(model, precision="fp16", level=level), random_ids(config, 1), 4)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("rows", [1, 2])
def test_logits_after_every_token_are_those_after_the_last_of_each(
    rows: int, level: str, precision: str
) -> None:
    """Over blocks and the two ways of the head; 300 rows of tokens do not fit one block."""
    config = ModelConfig(vocab_size=150, context_length=320, emb_dim=48, n_heads=2, n_layers=2)
    model = model_of(config)
    ids = random_ids(config, rows)[:, :300]
    options = {"level": level, "precision": precision}
    decoder = make(model, **options)
    chunks = [Chunk(decoder.open(), 0, row, every=True) for row in ids.tolist()]
    every = decoder.read(chunks).reshape(rows, 300, -1)
    if precision == "fp32":
        assert np.abs(every - model(ids).numpy()).max() < 1e-4
    for length in (1, 7, 200, 300):
        last = read(make(model, **options), ids[:, :length], length)[:, 0]
        np.testing.assert_array_equal(every[:, length - 1], last)


@pytest.mark.parametrize("precision", native.TYPES)
@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(threads: int, precision: str) -> None:
    model = model_of(CONFIGS[2])
    ids = random_ids(model.config, 2)
    alone, together = (make(model, threads=n, precision=precision) for n in (1, threads))
    assert np.array_equal(read(alone, ids, 20), read(together, ids, 20))


@given(
    sizes=st.sampled_from([(300, 24, 3), (77, 40, 5), (1030, 64, 4)]),
    precision=st.sampled_from(native.TYPES),
    level=st.sampled_from(levels()),
    threads=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_a_row_has_the_same_logits_in_any_company_to_the_last_bit(
    sizes: tuple[int, int, int],
    precision: str,
    level: str,
    threads: int,
    lengths: list[int],
    data: st.DataObject,
) -> None:
    """Texts of any lengths, in any order and chunks of any size."""
    vocab_size, emb_dim, n_heads = sizes
    config = ModelConfig(vocab_size, 200, emb_dim, n_heads, n_layers=2)
    weights = RandomWeights(config)
    texts = random_ids(config, len(lengths)).tolist()
    options: dict[str, Any] = {"precision": precision, "level": level}
    together = EngineDecoder(config, weights, 6400, threads=threads, **options)
    places = [together.open() for _ in texts]
    found: list[list[Any]] = [[] for _ in texts]
    while unread := [i for i, n in enumerate(lengths) if len(found[i]) < n]:
        order = data.draw(st.lists(st.sampled_from(unread), min_size=1, unique=True))
        chunks = []
        for i in order:
            begin, end = len(found[i]), data.draw(st.integers(len(found[i]) + 1, lengths[i]))
            chunks.append(Chunk(places[i], begin, texts[i][begin:end], every=True))
        logits = together.read(chunks)
        for i, chunk in zip(order, chunks, strict=True):
            found[i] += list(logits[: len(chunk.ids)])
            logits = logits[len(chunk.ids) :]
    alone = EngineDecoder(config, weights, threads=1, **options)
    place = alone.open()
    for text, rows in zip(texts, found, strict=True):
        one_by_one = [alone.read([Chunk(place, t, text[t : t + 1])])[0] for t in range(len(rows))]
        np.testing.assert_array_equal(rows, one_by_one)


def test_greedy_text_is_that_of_numpy_for_200_tokens() -> None:
    config = ModelConfig(vocab_size=500, context_length=256, emb_dim=96, n_heads=4, n_layers=3)
    model = model_of(config)
    decoders = [make(model), NumpyDecoder(config, weights_of(model))]
    texts = []
    for decoder in decoders:
        place, ids = decoder.open(), [1, 2, 3]
        logits = decoder.read([Chunk(place, 0, ids)])
        for _ in range(200):
            ids.append(int(logits.argmax()))
            logits = decoder.read([Chunk(place, len(ids) - 1, ids[-1:])])
        texts.append(ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(("precision", "most"), [("int8", 0.05), ("int4", 0.45)])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"C{c.emb_dim}")
def test_fewer_bits_score_nearly_the_same(
    config: ModelConfig, precision: str, most: float, level: str
) -> None:
    """The share of the scores that is error; 12 rows fill tiles and leave some over.

    Wide limits, for wrong code gives 1 or more: weights this large and random magnify every
    error (measured: 0.035 and 0.32). What a trained model makes of it is tested below.
    """
    model = model_of(config)
    ids = random_ids(config, 12)
    exact = model(ids)[:, 18:].numpy()
    coded = read(make(model, precision=precision, level=level), ids, 19)
    error = float(np.sqrt(np.square(coded - exact).mean() / np.square(exact).mean()))
    assert error < most


def log_softmax(logits: Any) -> Any:
    return torch.from_numpy(logits).double().log_softmax(-1).numpy()


@pytest.mark.parametrize(
    ("precision", "most"), [("bf16", 0.0005), ("fp16", 0.0005), ("int8", 0.002), ("int4", 0.03)]
)
def test_fewer_bits_keep_the_perplexity_of_bard(precision: str, most: float) -> None:
    """On the end of its text, which it was not trained on."""
    directory, text = BUNDLED_DIR / "bard", SHARED_DATA / "tinyshakespeare.txt"
    if not directory.is_dir() or not text.is_file():
        pytest.skip("bard or its text is not here")
    config, tensors = checkpoint.read(directory)
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    B, T = 8, config.context_length
    tokens = Tokenizer.load(directory).encode(text.read_text(encoding="utf-8")[-30_000:])
    ids = torch.tensor(tokens[: B * T]).view(B, T)

    def loss(precision: Any) -> float:
        decoder = EngineDecoder(config, weights, B * T, precision=precision)
        scores = log_softmax(read(decoder, ids[:, :-1], 1))  # (B, T − 1, V)
        return float(-np.take_along_axis(scores, ids[:, 1:, None].numpy(), axis=2).mean())

    assert abs(np.expm1(loss(precision) - loss("fp32"))) < most


def test_memory_is_estimated_in_the_pages_of_the_engine() -> None:
    assert native.library().engine_page_length() == memory.PAGE == pages.PAGE


@pytest.mark.slow
@pytest.mark.parametrize("header", sorted(path.name for path in SOURCES.glob("*.h")))
def test_a_header_includes_what_it_uses(header: str) -> None:
    compile_alone(f'#include "{header}"')


@pytest.mark.parametrize("struct", [abi.Config, abi.KVCache, abi.Job, abi.EncodeJob])
def test_structs_lie_in_memory_as_the_engine_expects(struct: Any) -> None:
    name = struct.__name__
    offsets = {field: getattr(struct, field).offset for field, *_ in struct._fields_}
    compile_alone(
        "#include <cstddef>",
        '#include "types.h"',
        f'static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "size");',
        *(f'static_assert(offsetof({name}, {f}) == {n}, "{f}");' for f, n in offsets.items()),
    )


def test_what_cannot_be_read_is_refused() -> None:
    decoder = make(model_of(CONFIGS[0]))
    place = decoder.open()
    for wrong in ([1, 77], [-1]):
        with pytest.raises(ValueError, match="vocabulary"):
            decoder.read([Chunk(place, 0, wrong)])
    decoder.read([Chunk(place, 0, [1] * 8)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told_to_make_its_own() -> None:
    decoder = make(model_of(CONFIGS[0]), threads=2)
    place = decoder.open()
    decoder.read([Chunk(place, 0, [1, 2])])
    child = os.fork()
    if child == 0:
        try:
            decoder.read([Chunk(place, 2, [3])])
        except DeviceError as error:
            os._exit(7 if "forked" in str(error) else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    decoder.read([Chunk(place, 2, [3])])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone holds us to a core")
def test_threads_that_share_a_core_end_with_the_same() -> None:
    model = model_of(CONFIGS[2])
    ids = random_ids(model.config, 2)
    expected = read(make(model, threads=1), ids, 20)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the threads of a new decoder inherit it
    try:
        crowded = read(make(model, threads=4), ids, 20)
    finally:
        os.sched_setaffinity(0, cores)
    assert np.array_equal(crowded, expected)


@given(
    size=st.sampled_from([1, 77, 300, 4096, 50257]),
    spread=st.sampled_from([0.0, 0.01, 0.5, 3.0, 30.0]),
    peaks=st.integers(0, 30),
    steps=st.sampled_from([None, 0.25, 4.0]),
    temperature=st.sampled_from([0.01, 0.3, 0.8, 1.0, 5.0]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.95, 0.9999, 1.0]),
    seed=st.integers(0, 10**6),
    level=st.sampled_from(levels()),
)
@settings(deadline=None, max_examples=200)
def test_a_draw_is_that_of_the_rules(
    size: int,
    spread: float,
    peaks: int,
    steps: float | None,
    temperature: float,
    top_p: float,
    seed: int,
    level: str,
) -> None:
    """The same token, unless the number drawn falls where two meet: exponentials may round."""
    random = np.random.default_rng(seed)
    logits = (random.normal(size=(5, size)) * spread).astype(np.float32)
    logits[:, :peaks] += random.exponential(5, logits[:, :peaks].shape)
    logits[:, random.integers(size, size=size // 3)] = -np.inf
    if steps is not None:
        logits = np.round(logits / steps) * np.float32(steps)  # many are equal
    config = ModelConfig(size, context_length=8, emb_dim=8, n_heads=1, n_layers=1)
    engine = EngineDecoder(config, RandomWeights(config), level=level, threads=2)
    uniforms = random.random(5)
    rows = [3, 0, 1, 2, 4]
    found = engine.draw(logits, rows, [temperature] * 5, [top_p] * 5, uniforms[rows])
    for row, token_id in zip(rows, found, strict=True):
        wanted = {
            nucleus.draw_one(logits[row], temperature, None, top_p, float(u))
            for u in np.clip(uniforms[row] + np.array([-1e-6, 0, 1e-6]), 0, 1 - 2**-53)
        }
        near = nucleus.draw_one(logits[row], temperature, None, top_p * (1 - 1e-6), uniforms[row])
        assert token_id in wanted | {near}


def test_a_process_may_end_while_a_thread_computes() -> None:
    script = """if True:
        import threading
        import gpt2cli
        from gpt2cli.decoders.pages import Chunk

        decoder, has_begun = gpt2cli.load("bard").decoder(), threading.Event()

        def compute():
            while True:
                place = decoder.open()
                decoder.read([Chunk(place, 0, [5] * 100)])
                decoder.close(place)
                has_begun.set()

        threading.Thread(target=compute, daemon=True).start()
        has_begun.wait()
    """
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
