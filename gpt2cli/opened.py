"""A model's files with their adapters, where they run, and what can be made of them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2cli.config.interventions import Interventions
from gpt2cli.config.model import ModelConfig
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.errors import TokenizerError, UsageError, WeightsError
from gpt2cli.system.device import Placement
from gpt2cli.version import __version__
from gpt2cli.weights import layout, mapping, sources
from gpt2cli.weights.sources import Source

if TYPE_CHECKING:
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.model.edits import Edits
    from gpt2cli.model.gpt2 import GPT2
    from gpt2cli.progress import Progress
    from gpt2cli.text.tokenizer import Tokenizer
    from gpt2cli.weights.merging import Chosen


class OpenModel:
    """A model with its adapters, and the device and precision it runs in.

    Nothing is fetched or read before it is needed.
    """

    def __init__(
        self,
        source: Source,
        placement: Placement,
        *,
        offline: bool = False,
        adapters: tuple[Chosen, ...] = (),
        interventions: Interventions | None = None,
    ) -> None:
        self.source, self.placement, self.offline = source, placement, offline
        self.adapters, self.interventions = adapters, interventions or Interventions()

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.source.name

    @property
    def title(self) -> str:
        """The same with its adapters and interventions, for people."""
        adapters = " and ".join(map(str, self.adapters))
        name = f"{self.name} with {adapters}" if adapters else self.name
        return f"{name} {self.interventions}" if self.interventions else name

    @property
    def precision(self) -> str:
        """A key of `system.precision.PRECISIONS`."""
        return self.placement.precision

    @property
    def sampling(self) -> SamplingConfig:
        """The model's default sampling settings."""
        return self.source.sampling

    @property
    def directory(self) -> Path:
        """Where its files are. Raises `WeightsError` before they were fetched."""
        if self.source.directory is None:
            raise WeightsError(f"{self.name} has not been fetched")
        return self.source.directory

    @cached_property
    def config(self) -> ModelConfig:
        """The architecture. Raises `UsageError` for a hub model that is not in the cache."""
        return self.source.config()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary. Raises `TokenizerError` if it has more ids than the model."""
        from gpt2cli.text.tokenizer import Tokenizer

        self.fetch(vocabulary_only=True)
        tokenizer = Tokenizer.load(self.directory)
        if tokenizer.size > self.config.vocab_size:
            raise TokenizerError(
                f"the vocabulary of {self.name} has {tokenizer.size} tokens, "
                f"its model only {self.config.vocab_size}"
            )
        return tokenizer

    def fetch(self, *, vocabulary_only: bool = False, progress: Progress | None = None) -> None:
        """Fetch its files, or those of its vocabulary. A cached model needs no network."""
        self.source = sources.fetch(
            self.source, offline=self.offline, vocabulary_only=vocabulary_only, progress=progress
        )

    def read_ahead(self) -> None:
        """Begin to bring the weights into memory, if a decoder will use them as they are there."""
        if self.placement == Placement("cpu", "fp32") and self.source.directory:
            mapping.begin(self.source.directory / layout.WEIGHTS)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt; end-of-text alone stands for an empty one."""
        tokenizer = self.tokenizer
        return tokenizer.encode(text, special=special) or [tokenizer.beginning()]

    def check_compile(self) -> None:
        """Raise `UsageError` if there is no decoding step to compile."""
        from gpt2cli.decoders.opening import check_compile

        check_compile(self.placement)

    def decoder(
        self,
        tokens: int | None = None,
        *,
        compiled: bool = False,
        progress: Progress | None = None,
        network: GPT2 | None = None,
    ) -> Decoder:
        """The weights on their device, with a KV cache for `tokens` tokens of all sequences.

        Without `tokens` it has room for one full context. The logits cover the vocabulary; if they
        are not finite the decoder raises `WeightsError`. Under interventions it computes with the
        `network` that is open already, if there is one. Raises `UsageError` if memory is too
        small.
        """
        from gpt2cli.decoders.opening import open_decoder
        from gpt2cli.system.memory import check_room

        if tokens is not None:
            check_room(self.config, self.placement, tokens)
        self.fetch(progress=progress)
        if self.interventions:
            from gpt2cli.decoders.torch_decoder import TorchDecoder

            network, size = network or self.network(), self.tokenizer.size
            edits = self.edits(network)
            return TorchDecoder(network, tokens, compiled, edits=edits, size=size, name=self.name)
        return open_decoder(
            self.directory,
            self.placement,
            tokens,
            adapters=self.adapters,
            size=self.tokenizer.size,
            name=self.name,
            compiled=compiled,
            progress=progress,
        )

    def network(self) -> GPT2:
        """The reference model in PyTorch, on its device, for `analysis`; fp32 where quantized."""
        from gpt2cli.decoders.opening import open_network

        return open_network(self.directory, self.placement, self.adapters)

    def edits(self, network: GPT2) -> Edits:
        """What the interventions change in a forward pass of the `network`."""
        from gpt2cli.model.interventions import edits

        return edits(network, self.interventions, self.tokenizer)

    def save(
        self,
        directory: Path,
        precision: str | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write the model, its adapters merged in, as a directory that transformers reads.

        `precision` is fp32, fp16 or bf16, and by default that of the files; with adapters fp32,
        since a smaller one would round what they add away. Raises `UsageError` if the directory
        exists, unless it holds a model and `overwrite` allows its end.
        """
        from gpt2cli.system.memory import check_conversion
        from gpt2cli.weights.exporting import to_directory

        self.fetch(progress=progress)
        check_conversion(self.config)
        to_directory(
            self.directory,
            directory,
            precision,
            self.adapters,
            overwrite=overwrite,
            progress=progress,
        )

    def save_gguf(
        self,
        path: Path,
        precision: str | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """The same as a GGUF file, also in q8_0 and q4_0; needs the extra `gguf`."""
        from gpt2cli.system.memory import check_conversion
        from gpt2cli.weights.exporting import to_gguf

        self.fetch(progress=progress)
        check_conversion(self.config)
        to_gguf(
            self.directory,
            path,
            precision,
            self.adapters,
            name=self.title,
            overwrite=overwrite,
            progress=progress,
        )

    def save_adapter(self, path: Path, *, overwrite: bool = False) -> None:
        """Write its one adapter alone, as a GGUF file that llama.cpp adds to the model."""
        from gpt2cli.weights.exporting import adapter_to_gguf

        if len(self.adapters) != 1:
            raise UsageError(f"a file holds one adapter, and {self.title} has another number")
        self.fetch()
        adapter_to_gguf(self.directory, path, self.adapters[0], overwrite=overwrite)

    def why_quantized_again(self) -> str | None:
        """Why the next run has to quantize the weights again; None if it need not."""
        from gpt2cli.decoders.opening import is_native

        if not is_native(self.placement) or self.precision == "fp32":
            return None
        from gpt2cli.decoders.opening import why_quantized_again

        return why_quantized_again(self.directory, self.precision, self.adapters)

    def facts(self) -> dict[str, Any]:
        """What runs, where and how: the same keys wherever a result is written down."""
        from gpt2cli.decoders.opening import engine_name, processor_name

        return {
            "model": self.name,
            "repo_id": self.source.repo_id,
            "revision": self.source.revision,
            "adapters": [str(adapter) for adapter in self.adapters],
            **({"interventions": self.interventions.as_dict()} if self.interventions else {}),
            "device": self.placement.device,
            "precision": self.precision,
            "engine": engine_name(self.placement),
            "version": __version__,
            "processor": processor_name(self.placement),
        }

    def describe(self) -> str:
        """The same in a few words, for people."""
        from gpt2cli.decoders.opening import engine_name

        where = f"{self.placement.device} in {self.precision}"
        return f"{self.title} on {where}, {engine_name(self.placement)} engine"
