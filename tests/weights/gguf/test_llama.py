"""llama.cpp runs what is exported, and what llama.cpp quantizes runs here.

Only where llama-cpp-python is installed, which has to be compiled.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest
import torch
from adapters import PLAIN, foreign
from helpers import SHARED_DATA
from vocabularies import FRAGMENTS

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import BUNDLED_DIR
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import adapter as peft_adapter
from gpt2cli.weights import checkpoint, exporting
from gpt2cli.weights.gguf import adapter, imported
from gpt2cli.weights.merging import Chosen

llama_cpp = pytest.importorskip("llama_cpp")

TEXT = (
    "ROMEO:\nBut soft, what light through yonder window breaks? It is the east, and Juliet is the "
    "sun. “Arise, fair sun, and kill the envious moon, who is already sick and pale with grief”"
)
AWKWARD = [
    *FRAGMENTS,
    "  ".join(FRAGMENTS),
    "<|endoftext|>Hello<|endoftext|>",
    " leading and trailing ",
    "The quick  brown\tfox\r\n\r\n jumps; it's 3.14159, they'LL've—“said”",
]


@pytest.fixture(scope="module", params=["bard", "openai"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, and a small one of random weights with OpenAI's vocabulary."""
    if request.param == "bard":
        return BUNDLED_DIR / "bard"
    if not (SHARED_DATA / "encoder.json").is_file():
        pytest.skip("OpenAI's encoder.json and vocab.bpe are not at ../shared/data")
    path = tmp_path_factory.mktemp("openai")
    shutil.copy(SHARED_DATA / "encoder.json", path / "vocab.json")
    shutil.copy(SHARED_DATA / "vocab.bpe", path / "merges.txt")
    torch.manual_seed(0)
    model = GPT2(ModelConfig(50257, context_length=1024, emb_dim=256, n_heads=4, n_layers=3))
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, float(name.endswith("scale")), 0.05)
    checkpoint.save(model, path, 50256, torch.float32)
    return path


@pytest.fixture(autouse=True)
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture(autouse=True)
def plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without repacked weights: with them llama.cpp crashes on CPUs whose AMX it may not use."""
    default = llama_cpp.llama_model_default_params

    def changed() -> Any:
        settings = default()
        settings.use_extra_bufts = False
        return settings

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", changed)


@pytest.fixture
def ids(directory: Path) -> list[int]:
    return Tokenizer.load(directory).encode(TEXT)


def opened(path: Path, **settings: Any) -> Any:
    options = {"logits_all": True, "verbose": False, "n_threads": 2, "n_ctx": 256}
    return llama_cpp.Llama(str(path), **options, **settings)


def theirs(path: Path, ids: list[int], **settings: Any) -> NDArray:
    """The logits (T, V) of llama.cpp."""
    llama = opened(path, **settings)
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], np.float64)


def ours(directory: Path, ids: list[int], *adapters: Chosen) -> NDArray:
    """The logits of the PyTorch model, in fp32."""
    logits: NDArray = checkpoint.load(directory, adapters)(torch.tensor([ids]))[0].double().numpy()
    return logits


def divergence(p: NDArray, q: NDArray) -> float:
    """KL(p || q) in nats, the mean over all positions."""
    a, b = (torch.log_softmax(torch.from_numpy(logits), -1) for logits in (p, q))
    return float((a.exp() * (a - b)).sum(-1).mean())


def test_every_text_is_the_same_tokens(directory: Path, tmp_path: Path) -> None:
    path = ggufs.write(directory, tmp_path / "model.gguf", "q8_0")
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = Tokenizer.load(directory)
    for text in AWKWARD:
        # llama-cpp-python asks for the beginning; the file says that there is none.
        found = llama.tokenize(text.encode(), add_bos=True, special=True)
        assert found == tokenizer.encode(text), text
    assert llama.token_eos() == tokenizer.end_of_text


def test_logits_in_fp32_are_the_same(directory: Path, tmp_path: Path, ids: list[int]) -> None:
    path = ggufs.write(directory, tmp_path / "model.gguf")
    assert np.abs(theirs(path, ids) - ours(directory, ids)).max() <= 0.01


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 5e-5), ("q8_0", 5e-4), ("q4_0", 0.03)])
def test_fewer_bits_change_little(
    directory: Path, tmp_path: Path, ids: list[int], precision: str, limit: float
) -> None:
    path = ggufs.write(directory, tmp_path / "model.gguf", precision)
    found = divergence(ours(directory, ids), theirs(path, ids))
    assert 0 < found <= limit


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "Q3_K_S", "IQ4_XS"])
def test_what_llama_cpp_quantizes_is_read_as_it_reads_it(
    directory: Path, tmp_path: Path, ids: list[int], name: str
) -> None:
    source, path = ggufs.write(directory, tmp_path / "source.gguf"), tmp_path / f"{name}.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(path), settings) == 0
    found = divergence(theirs(path, ids), ours(imported.convert(path), ids))
    assert found <= 1e-3  # it also rounds activations


def test_an_adapter_does_there_what_it_does_here(
    directory: Path, tmp_path: Path, ids: list[int]
) -> None:
    rslora = {**PLAIN, "use_rslora": True, "target_modules": ["c_attn", "c_proj", "c_fc"]}
    foreign(directory, tmp_path / "lora", rslora)
    found = peft_adapter.read(tmp_path / "lora", checkpoint.read(directory)[0])
    adapter.write(found, tmp_path / "lora.gguf", "lora")
    base = ggufs.write(directory, tmp_path / "model.gguf")
    chosen = Chosen(tmp_path / "lora")
    exporting.to_gguf(directory, tmp_path / "merged.gguf", None, [chosen])
    effect = theirs(base, ids, lora_path=str(tmp_path / "lora.gguf"))
    assert np.abs(effect - theirs(base, ids)).max() > 0.5
    assert np.abs(effect - theirs(tmp_path / "merged.gguf", ids)).max() <= 0.01
    assert divergence(ours(directory, ids, chosen), effect) <= 1e-5
