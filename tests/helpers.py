"""What the tests share: models of random weights, decoders of all kinds, streams and terminals."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TextIO

import numpy as np
import pytest
import torch

from gpt2cli.api import LoadedModel
from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.spec import BUNDLED_DIR
from gpt2cli.decoders import native
from gpt2cli.decoders.native.decoder import EngineDecoder
from gpt2cli.decoders.numpy_decoder import NumpyDecoder
from gpt2cli.decoders.paged import PagedDecoder
from gpt2cli.decoders.pages import Chunk
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.decoders.torch_decoder import TorchDecoder
from gpt2cli.model.gpt2 import GPT2
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.weights import checkpoint

# Whoever has no compiler has no engine; .ci/run, which has one, insists on it.
needs_engine = pytest.mark.skipif(not native.available(), reason=native.why_not())
# Linux's alone is always full.
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
REPOSITORY = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
BARD_SIZE = checkpoint.read(BUNDLED_DIR / "bard")[0]
TEXT = (
    "The quick brown fox jumps over the lazy dog. ROMEO: But soft, what light through yonder "
    "window breaks? It is the east, and Juliet is the sun. I'm, you're, they'll; 1234 567.\n\n"
) * 20
PROMPT = "The quick brown </script><b>fox</b> jumps & 'I'm'"
# One token per byte: ids are text.
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


Rule = Callable[[int, Sequence[int]], NDArray]
"""Logits (V,) of a sequence, by its number, after a text."""


class ScriptedDecoder(PagedDecoder):
    """A decoder without a model: logits are what `rule` makes of a sequence's number and text.

    It remembers how it was called: `reads`, call by call, and `tokens_read`. `to_array` makes the
    logits arrays of another library.
    """

    def __init__(
        self,
        rule: Rule,
        context_length: int = 1000,
        tokens: int | None = None,
        *,
        size: int = BYTES.size,
        to_array: Callable[[NDArray], Any] = np.asarray,
    ) -> None:
        config = ModelConfig(size, context_length, emb_dim=4, n_heads=1, n_layers=1)
        super().__init__(config, tokens or 100 * context_length)
        self.reads: list[list[Chunk]] = []
        self._rule, self._to_array = rule, to_array

    @property
    def tokens_read(self) -> int:
        """All ids of all chunks."""
        return sum(len(chunk.ids) for chunks in self.reads for chunk in chunks)

    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Any:
        self.reads.append([chunk._replace(ids=list(chunk.ids)) for chunk in chunks])
        logits = []
        for chunk in chunks:
            text = [*self._pages.ids(chunk.sequence), *chunk.ids]
            assert len(text) == chunk.start + len(chunk.ids)
            begin = chunk.start + 1 if chunk.every else len(text)
            logits += [self._rule(chunk.sequence, text[:n]) for n in range(begin, len(text) + 1)]
        return self._to_array(np.array(logits, np.float32))

    def _copy_page(self, source: int, target: int) -> None:
        pass


def certain(token_id: int, size: int = BYTES.size) -> NDArray:
    """Logits (V,) that leave no doubt."""
    logits = np.zeros(size, np.float32)
    logits[token_id] = 9
    return logits


def script(*texts: Sequence[int], prompt: int = 1) -> Rule:
    """Sequence i says the ids of `texts[i]` after a prompt of so many ids, and then "?"."""

    def rule(sequence: int, text: Sequence[int]) -> NDArray:
        place = len(text) - prompt
        return certain(texts[sequence][place] if place < len(texts[sequence]) else ord("?"))

    return rule


def by_text(_: int, text: Sequence[int]) -> NDArray:
    """Logits (V,) of random numbers, that depend on the whole text and nothing else."""
    return np.random.default_rng(text).standard_normal(BYTES.size)


MakeDecoder = Callable[..., Decoder]


def modelled(model: GPT2, tokens: int | None = None) -> Decoder:
    """A scripted decoder that says what a model says, read afresh at each token."""
    return ScriptedDecoder(
        lambda _, text: model(torch.tensor([text]))[0, -1].numpy(),
        model.config.context_length,
        tokens,
        size=model.config.vocab_size,
    )


def decoders(kind: str, directory: Path) -> MakeDecoder:
    """Every decoder of the project, behind the one protocol: torch, numpy or native.

    What is returned makes one, with room for `tokens` tokens (a context by default).
    """
    config, tensors = checkpoint.read(directory)
    if kind == "torch":
        return partial(TorchDecoder, checkpoint.load(directory))
    weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
    if kind == "numpy":
        return partial(NumpyDecoder, config, weights)
    if not native.available():
        pytest.skip(native.why_not())
    return partial(EngineDecoder, config, weights)


def generate_into(model: LoadedModel, queue: Any) -> None:
    """What a process of its own does with a model; it finds this module, unlike a test's."""
    queue.put(model.generate("ROMEO:", seed=1, max_tokens=9).text)


class Run(Protocol):
    """Runs the command `gpt2` with these arguments, and what is piped into it."""

    def __call__(
        self,
        *arguments: str | bytes,
        stdin: bytes = b"",
        env: dict[str, str] | None = None,
        code: int = 0,
    ) -> subprocess.CompletedProcess[bytes]:
        """What it wrote; `env` is added to the environment. Fails unless it exits with `code`."""


def checked(
    done: subprocess.CompletedProcess[bytes], code: int
) -> subprocess.CompletedProcess[bytes]:
    """The same, once its exit code has been seen to be this one."""
    assert done.returncode == code, (done.args, done.stderr.decode(errors="replace"))
    return done


@contextmanager
def piped(data: bytes) -> Iterator[TextIO]:
    """A stdin at the other end of a pipe, into which these bytes are written."""

    def write() -> None:
        with suppress(BrokenPipeError), open(writing, "wb") as pipe:
            pipe.write(data)

    reading, writing = os.pipe()
    writer = Thread(target=write)
    writer.start()
    with open(reading, encoding="utf-8") as stdin:
        yield stdin
    writer.join()


def error_of(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line on stderr of a command that failed."""
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
