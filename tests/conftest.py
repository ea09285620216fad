"""What the tests share: a tiny model, OpenAI's vocabulary where it is at hand, the command."""

from __future__ import annotations

import io
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.training.corpus import train_vocabulary
from gpt2cli.weights import checkpoint

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TEXT = (
    "The quick brown fox jumps over the lazy dog. ROMEO: But soft, what light through yonder "
    "window breaks? It is the east, and Juliet is the sun. I'm, you're, they'll; 1234 567.\n\n"
) * 20
# A token a byte: ids are text.
BYTES = Tokenizer({bytes([i]): i for i in range(256)}, {"<|endoftext|>": 256})


def random_model(config: ModelConfig, seed: int = 0) -> GPT2:
    """A model whose every parameter, biases and norms included, differs from its default."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2(config)
    for name, p in model.named_parameters():
        mean = 1.0 if name.endswith("scale") else 0.0
        std = 0.1 if p.dim() < 2 else 0.3
        torch.nn.init.normal_(p, mean, std, generator=generator)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(vocab_size=300, context_length=32, emb_dim=24, n_heads=3, n_layers=2)


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> Path:
    """A checkpoint of random weights with a vocabulary of its own, in the hub's layout."""
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = train_vocabulary(TEXT, tiny_config.vocab_size, directory)
    assert tokenizer.end_of_text is not None
    assert tokenizer.size == tiny_config.vocab_size
    checkpoint.save(random_model(tiny_config), directory, tokenizer.end_of_text, torch.float32)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_directory: Path) -> Tokenizer:
    return Tokenizer.load(tiny_directory)


@pytest.fixture(scope="session")
def openai_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's vocabulary under the names that a checkpoint uses."""
    if not (SHARED_DATA / "encoder.json").is_file():
        pytest.skip("OpenAI's encoder.json and vocab.bpe are not at ../shared/data")
    directory = tmp_path_factory.mktemp("openai")
    shutil.copy(SHARED_DATA / "encoder.json", directory / "vocab.json")
    shutil.copy(SHARED_DATA / "vocab.bpe", directory / "merges.txt")
    return directory


MakeDecoder = Callable[..., Decoder]


def decoders(kind: str, directory: Path) -> MakeDecoder:
    """Every decoder of the project, behind the one protocol: torch, numpy or engine."""
    config, tensors = checkpoint.read(directory)
    if kind == "torch":
        return partial(TorchDecoder, checkpoint.load(directory))
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    if kind == "numpy":
        return partial(NumpyDecoder, config, weights)
    if not native.available():
        pytest.skip(native.why_not())
    return partial(EngineDecoder, config, weights)


@pytest.fixture(scope="module", params=["torch", "numpy", "engine"])
def make(request: pytest.FixtureRequest, tiny_directory: Path) -> MakeDecoder:
    """What makes a decoder of the tiny model, of each kind in turn."""
    return decoders(request.param, tiny_directory)


Gpt2 = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def gpt2(tmp_path: Path) -> Gpt2:
    """Run the command as a shell would, in a process of its own, away from the user's cache."""

    def run(
        *arguments: str | bytes, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("GPT2_", "HF_"))}
        return subprocess.run(
            [sys.executable, "-m", "gpt2cli", *arguments],
            input=stdin,
            capture_output=True,
            env={**clean, "HF_HOME": str(tmp_path / "hf"), **(env or {})},
            timeout=120,
            check=False,
        )

    return run


def error_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that a failed command printed."""
    text = done.stderr.decode()
    assert "Traceback" not in text
    assert text.count("\n") == 1, text
    return text


def says(directory: Path, tokens: list[int], vocabulary: Path) -> Path:
    """A checkpoint that says tokens[0], tokens[1], … by position, whatever the prompt.

    Each position's embedding points at one token's, and all else is zero.
    """
    config = ModelConfig(300, context_length=32, emb_dim=64, n_heads=1, n_layers=1)
    model = GPT2(config)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    with torch.no_grad():
        for position in range(config.context_length):
            axis = position % len(tokens)
            model.position_embedding.weight[position, axis] = 10
            model.token_embedding.weight[tokens[axis], axis] = 1
        model.final_norm.scale.fill_(50.0)
    checkpoint.save(model, directory, 0, torch.float32)
    for name in ("vocab.json", "merges.txt"):
        (directory / name).write_bytes((vocabulary / name).read_bytes())
    return directory


@pytest.fixture(scope="session")
def letters(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with the letters b, c, d, … according to the prompt's length."""
    tokenizer = Tokenizer.load(tiny_directory)
    ids = [tokenizer.encode(letter)[0] for letter in "bcdefghijklmnopqrstuvwxyz"]
    return says(tmp_path_factory.mktemp("letters"), ids, tiny_directory)


class Stream(io.TextIOWrapper):
    """A stdout or stderr in some encoding that may claim to be a terminal."""

    def __init__(self, terminal: bool = False, encoding: str = "ascii") -> None:
        self.bytes = io.BytesIO()
        super().__init__(self.bytes, encoding=encoding, errors="strict", newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        """What was said when it was made."""
        return self._terminal

    def written(self) -> bytes:
        """Everything that has got through so far, without another flush."""
        return self.bytes.getvalue()


def on_terminal(
    *arguments: str, interrupt_after: bytes | None = None, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run the command on a pseudo-terminal; its exit code and all that the screen received."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2cli", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | (env or {}),
        start_new_session=True,
    )
    os.close(slave)
    screen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.1)[0]:
            try:
                screen += os.read(master, 65536)
            except OSError:  # Linux says so when the other end has closed
                break
        if interrupt_after and interrupt_after in screen:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    code = process.wait(10)
    os.close(master)
    return code, screen.decode().replace("\r\n", "\n")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Gpt2:
    """As `gpt2`, but in this process, which has imported torch already."""
    from gpt2cli.cli import main

    def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "argv", ["gpt2", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            main()
        captured = capfdbinary.readouterr()
        code = left.value.code or 0
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, captured.out, captured.err)

    return run
