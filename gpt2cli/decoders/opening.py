"""From a found model to a running one: vocabulary, prompt, memory check, decoder.

A CPU in fp32 decodes with the native engine, or NumPy where that could not be built, and never
imports torch; all else is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.checked import CheckedDecoder
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import TokenizerError, UsageError, WeightsError
from gpt2cli.progress import Progress
from gpt2cli.system import estimate, machine
from gpt2cli.system.device import DTYPES, Placement, place
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import fit_prompt
from gpt2cli.weights import checkpoint, sources
from gpt2cli.weights.random_weights import RandomWeights
from gpt2cli.weights.sources import Source

QUANTIZATIONS = ("int8", "int4")
PRECISIONS = (*DTYPES, *QUANTIZATIONS)
PANEL = 32  # tokens: the engine's `engine_panel_length`, known without loading it


@dataclass(frozen=True, slots=True)
class Variant:
    """A model, where it shall run, and what its weights shall be coded in, if anything."""

    source: Source
    placement: Placement
    quantize: str | None

    @property
    def precision(self) -> str:
        """One of `PRECISIONS`."""
        return self.quantize or self.placement.dtype


def parse_variant(name: str, device: str = "auto") -> Variant:
    """Read MODEL or MODEL:PRECISION. Raises `UsageError` for what is not here.

    Without a precision it is what `device.place` chooses; int8 and int4 run on a CPU.
    """
    model, colon, precision = name.rpartition(":")
    if not colon or Path(name).exists():
        return Variant(sources.resolve(name), place(device), None)
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision in {name!r}; use one of {', '.join(PRECISIONS)}")
    source = sources.resolve(model)
    if precision in DTYPES:
        return Variant(source, place(device, precision), None)
    placement = place("cpu" if device == "auto" else device)
    check_quantize(precision, placement)
    return Variant(source, placement, precision)


def directory_of(source: Source) -> Path:
    """Where a fetched model's files are. Raises `WeightsError` if it was not fetched."""
    if source.directory is None:
        raise WeightsError(f"{source.name} has not been fetched")
    return source.directory


def open_tokenizer(source: Source) -> Tokenizer:
    """The model's vocabulary. Raises `TokenizerError` if it has ids that the model lacks."""
    tokenizer = Tokenizer.load(directory_of(source))
    if tokenizer.size > source.config().vocab_size:
        raise TokenizerError(
            f"the vocabulary of {source.name} has {tokenizer.size} tokens, "
            f"its model only {source.config().vocab_size}"
        )
    return tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Token ids of the prompt; end-of-text alone stands for none."""
    return tokenizer.encode(text, special=special) or [tokenizer.beginning()]


def fit(ids: Sequence[int], source: Source, max_tokens: int, *, refuse: bool) -> list[int]:
    """The prompt as it fits the context. Raises `UsageError` if it does not and `refuse`."""
    context = source.config().context_length
    if refuse and len(ids) + max_tokens > context:
        raise UsageError(
            f"{len(ids)} tokens of prompt and {max_tokens} to generate exceed the context of "
            f"{context}; shorten one, or use overflow slide",
            "overflow",
        )
    return fit_prompt(ids, context)


def describe(source: Source, placement: Placement, quantize: str | None) -> str:
    """What runs, where and how, in a few words."""
    precision = quantize or placement.dtype
    return f"{source.name} on {placement.device} in {precision}, {engine_name(placement)} engine"


def engine_name(placement: Placement) -> str:
    """What computes there: native, NumPy or PyTorch."""
    if placement != Placement("cpu", "float32"):
        return "PyTorch"
    return "native" if native.available() else "NumPy"


def check_quantize(quantize: str | None, placement: Placement) -> None:
    """Refuse a quantisation that nothing here can compute. Raises `UsageError`."""
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise UsageError(
            f"quantize must be {' or '.join(QUANTIZATIONS)}, not {quantize!r}", "quantize"
        )
    if placement != Placement("cpu", "float32"):
        raise UsageError(
            f"quantize works on a CPU in float32, not on {placement.device} in "
            f"{placement.dtype}; add device cpu, or leave it out",
            "quantize",
            "device",
        )
    if reason := native.why_not():
        raise UsageError(f"quantize needs the native engine: {reason}", "quantize")


def check_compile(wanted: bool, placement: Placement) -> None:
    """Refuse to compile where PyTorch does not decode. Raises `UsageError`."""
    if wanted and (engine_name(placement) != "PyTorch" or placement.device == "mps"):
        raise UsageError(
            f"compile works on CUDA GPUs and in half precision on a CPU, not on "
            f"{placement.device} in {placement.dtype}; leave it out",
            "compile",
        )


def check_random(
    source: Source, placement: Placement, quantize: str | None, samples: int, tokens: int
) -> None:
    """Refuse to make more weights than memory holds. Raises `UsageError`."""
    needed, available = _memory(source, placement, quantize, samples, tokens)
    if needed > available:
        raise UsageError(
            f"{source.name} with {samples} sample{'s' if samples > 1 else ''} of up to {tokens} "
            f"tokens needs {needed / 1e9:,.1f} GB of memory and {available / 1e9:,.1f} GB are "
            "free; choose a smaller model"
        )


def open_decoder(
    source: Source,
    placement: Placement,
    size: int,
    samples: int,
    capacity: int,
    quantize: str | None = None,
    progress: Progress | None = None,
    compiled: bool = False,
) -> Decoder:
    """Load the weights where they shall run, with a KV cache of `capacity` tokens per sample.

    `size` is the vocabulary's: a model may be padded beyond it.
    `quantize` and `compiled` are what the checks have accepted; coding the weights, which the
    first run does, tells `progress` of it. Raises `UsageError` for more samples than memory,
    before any weights are read.
    """
    if samples > 1:
        check_memory(source, placement, quantize, samples, capacity)
    directory = directory_of(source)
    if placement == Placement("cpu", "float32"):
        if quantize:
            decoder = _quantized_decoder(directory, samples, capacity, quantize, progress)
        else:
            config, tensors = checkpoint.read(directory)
            weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
            decoder = _cpu_decoder(config, weights, samples, capacity)
    else:
        decoder = _torch_decoder(directory, placement, samples, capacity, compiled)
    return CheckedDecoder(decoder, size, source.name)


def open_random(
    source: Source,
    placement: Placement,
    size: int,
    samples: int,
    capacity: int,
    quantize: str | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """As `open_decoder`, with random weights of a config's size: no file is read or written.

    `check_random` says whether they fit.
    """
    config = source.config()
    weights = RandomWeights(config, progress)
    decoder: Decoder
    if quantize:
        from gpt2cli.decoders.native.decoder import EngineDecoder

        decoder = EngineDecoder(config, weights, samples, capacity, precision=quantize)
    elif placement == Placement("cpu", "float32"):
        decoder = _cpu_decoder(config, weights, samples, capacity)
    else:
        import torch

        from gpt2cli.decoders.torch_decoder import TorchDecoder

        device, dtype = placement.device, getattr(torch, placement.dtype)
        state = {name: torch.from_numpy(w).to(device, dtype) for name, w in weights.items()}
        decoder = TorchDecoder(checkpoint.assemble(config, state), samples, capacity)
    return CheckedDecoder(decoder, size, source.name)


def _cpu_decoder(
    config: ModelConfig, weights: Mapping[str, NDArray], samples: int, capacity: int
) -> Decoder:
    """The native engine where it was built, else NumPy."""
    if native.available():
        from gpt2cli.decoders.native.decoder import EngineDecoder

        return EngineDecoder(config, weights, samples, capacity)

    from gpt2cli.decoders.numpy_decoder import NumpyDecoder

    return NumpyDecoder(config, weights, samples, capacity)


def why_quantized_again(source: Source, quantize: str) -> str | None:
    """Why the next run has to quantize the weights once more; None if they were kept."""
    from gpt2cli.decoders.native.quantize import are_kept, cache_path

    directory = directory_of(source)
    if are_kept(directory, quantize):
        return None
    folder = cache_path(directory, quantize).parent
    return f"the {quantize} weights could not be kept in {folder}; each run makes them again"


def _torch_decoder(
    directory: Path, placement: Placement, samples: int, capacity: int, compiled: bool
) -> Decoder:
    import torch

    from gpt2cli.decoders.torch_decoder import TorchDecoder

    model = checkpoint.load(
        directory, device=placement.device, dtype=getattr(torch, placement.dtype)
    )
    return TorchDecoder(model, samples, capacity, compiled)


def _quantized_decoder(
    directory: Path, samples: int, capacity: int, precision: str, progress: Progress | None
) -> Decoder:
    from gpt2cli.decoders.native.decoder import EngineDecoder
    from gpt2cli.decoders.native.quantize import HEAD, identity, open_coded

    known = identity(directory)
    config, tensors = checkpoint.read(directory)
    codes = open_coded(directory, known, config, tensors, precision, progress)
    weights = {n: t.to_numpy() for n, t in tensors.items() if n not in codes or n == HEAD}
    return EngineDecoder(config, weights, samples, capacity, precision=precision, codes=codes)


def check_memory(
    source: Source,
    placement: Placement,
    quantize: str | None,
    rows: int,
    tokens: int,
    *,
    beams: bool = False,
) -> None:
    """Refuse a batch of samples or beams that cannot fit. Raises `UsageError`.

    One sample is let through: the system may yet find room.
    """
    needed, available = _memory(source, placement, quantize, rows, tokens, beams)
    if needed > available:
        what = "beams" if beams else "samples"
        raise UsageError(
            f"{rows} {what} of up to {tokens} tokens need {needed / 1e9:,.1f} GB of memory and "
            f"{available / 1e9:,.1f} GB are free; ask for fewer {what} or tokens"
        )


def _memory(
    source: Source,
    placement: Placement,
    quantize: str | None,
    rows: int,
    tokens: int,
    beams: bool = False,
) -> tuple[int, int]:
    """Bytes that a model needs where it shall run, and that are free there."""
    precision = estimate.precision_of(placement.dtype, quantize)
    cells = -(-tokens // PANEL) * PANEL
    needed = estimate.inference_bytes(source.config(), precision, cells, rows)
    if beams:
        needed += estimate.search_bytes(source.config(), precision, cells, rows)
    else:
        needed += estimate.sampling_bytes(source.config(), rows)
    on_gpu = placement.device.startswith("cuda")
    return needed, machine.detect().memory_available if on_gpu else machine.memory()[1]
