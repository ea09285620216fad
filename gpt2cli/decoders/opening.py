"""Which decoder computes where, and how it gets its weights.

A CPU in fp32, int8 or int4 decodes with the native engine, or in fp32 with NumPy where that could
not be built, and never imports torch; PyTorch does the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.decoders import native
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.errors import UsageError
from gpt2cli.progress import Progress
from gpt2cli.system.device import Placement
from gpt2cli.system.precision import PRECISIONS, torch_name
from gpt2cli.weights import checkpoint

if TYPE_CHECKING:
    from gpt2cli.weights.merging import Chosen


def engine_name(placement: Placement) -> str:
    """The engine that computes: native, NumPy or PyTorch."""
    if not placement.is_native:
        return "PyTorch"
    return "native" if native.available() else "NumPy"


def check_engine(placement: Placement) -> None:
    """Raise `UsageError` if no engine can compute with quantized weights."""
    if PRECISIONS[placement.precision].is_quantized and (reason := native.why_not()):
        raise UsageError(
            f"precision {placement.precision} needs the native engine: {reason}", "precision"
        )


def check_compile(placement: Placement) -> None:
    """Raise `UsageError` if PyTorch does not run the decoding step."""
    if placement.is_native or placement.device == "mps":
        raise UsageError(
            f"compile works on CUDA GPUs and in half precision on a CPU, not on "
            f"{placement.device} in {placement.precision}; leave it out",
            "compile",
        )


def open_decoder(
    directory: Path,
    placement: Placement,
    tokens: int | None = None,
    *,
    adapters: Sequence[Chosen] = (),
    size: int | None = None,
    name: str = "the model",
    compiled: bool = False,
    progress: Progress | None = None,
) -> Decoder:
    """Load the weights of a checkpoint, with a KV cache for `tokens` tokens of all sequences.

    `adapters` are merged into them. Without `tokens` it has room for one full context. `size` and
    `name` are those of `PagedDecoder`. `progress` is called while weights are quantized, in the
    first run. Raises `WeightsError` for a damaged checkpoint or adapter.
    """
    named: _Named = {"size": size, "name": name}
    if PRECISIONS[placement.precision].is_quantized:
        precision = placement.precision
        return _quantized_decoder(directory, adapters, tokens, precision, named, progress)
    if placement.is_native:
        config, tensors = checkpoint.read(directory, adapters)
        weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
        return _cpu_decoder(config, weights, tokens, named)
    return _torch_decoder(directory, adapters, placement, tokens, named, compiled)


def open_random(
    config: ModelConfig,
    placement: Placement,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """As `open_decoder`, with random weights of a config's size: no file is read or written."""
    from gpt2cli.weights.random_weights import RandomWeights

    weights = RandomWeights(config, progress)
    if PRECISIONS[placement.precision].is_quantized:
        from gpt2cli.decoders.native.decoder import EngineDecoder

        return EngineDecoder(config, weights, tokens, precision=placement.precision)
    if placement.is_native:
        return _cpu_decoder(config, weights, tokens, {})
    import torch

    from gpt2cli.decoders.torch_decoder import TorchDecoder

    device, dtype = placement.device, getattr(torch, torch_name(placement.precision))
    state = {name: torch.from_numpy(w).to(device, dtype) for name, w in weights.items()}
    return TorchDecoder(checkpoint.assemble(config, state), tokens)


def why_quantized_again(
    directory: Path, precision: str, adapters: Sequence[Chosen] = ()
) -> str | None:
    """Why the next run has to quantize the weights again; None if they were kept."""
    from gpt2cli.decoders.native.quantize import are_kept, cache_path

    if are_kept(directory, precision, adapters):
        return None
    folder = cache_path(directory, precision).parent
    return f"the {precision} weights could not be kept in {folder}; each run makes them again"


class _Named(TypedDict, total=False):
    """What `PagedDecoder` is told of the model."""

    size: int | None
    name: str


def _cpu_decoder(
    config: ModelConfig, weights: Mapping[str, NDArray], tokens: int | None, named: _Named
) -> Decoder:
    """The native engine where it was built, else NumPy."""
    if native.available():
        from gpt2cli.decoders.native.decoder import EngineDecoder

        return EngineDecoder(config, weights, tokens, **named)

    from gpt2cli.decoders.numpy_decoder import NumpyDecoder

    return NumpyDecoder(config, weights, tokens, **named)


def _torch_decoder(
    directory: Path,
    adapters: Sequence[Chosen],
    placement: Placement,
    tokens: int | None,
    named: _Named,
    compiled: bool,
) -> Decoder:
    import torch

    from gpt2cli.decoders.torch_decoder import TorchDecoder

    dtype = getattr(torch, torch_name(placement.precision))
    model = checkpoint.load(directory, adapters, device=placement.device, dtype=dtype)
    return TorchDecoder(model, tokens, compiled, **named)


def _quantized_decoder(
    directory: Path,
    adapters: Sequence[Chosen],
    tokens: int | None,
    precision: str,
    named: _Named,
    progress: Progress | None,
) -> Decoder:
    from gpt2cli.decoders.native.decoder import EngineDecoder
    from gpt2cli.decoders.native.quantize import HEAD, identity, open_coded

    known = identity(directory, adapters)
    config, tensors = checkpoint.read(directory, adapters)
    codes = open_coded(directory, known, config, tensors, precision, progress, adapters)
    weights = {n: t.to_numpy() for n, t in tensors.items() if n not in codes or n == HEAD}
    return EngineDecoder(config, weights, tokens, precision=precision, codes=codes, **named)
