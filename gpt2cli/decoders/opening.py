"""Which decoder computes where, and how it gets its weights.

A CPU decodes with the native engine and never imports torch. Where that could not be built, NumPy
does so in fp32, and PyTorch in half precision; GPUs are PyTorch's.
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
from gpt2cli.system.device import Placement, probe
from gpt2cli.system.machine import cpu_name
from gpt2cli.system.precision import HALVES, QUANTIZED, torch_name
from gpt2cli.weights import checkpoint

if TYPE_CHECKING:
    from gpt2cli.model.gpt2 import GPT2
    from gpt2cli.weights.merging import Chosen


def is_native(placement: Placement) -> bool:
    """Whether the native engine, or NumPy in its place, computes there, and not PyTorch."""
    if placement.device != "cpu" or placement.reference:
        return False
    return native.available() or placement.precision not in HALVES


def engine_name(placement: Placement) -> str:
    """The engine that computes: native, NumPy or PyTorch."""
    if not is_native(placement):
        return "PyTorch"
    return "native" if native.available() else "NumPy"


def processor_name(placement: Placement) -> str:
    """What computes there: its maker's name, and for the native engine the instructions it uses.

    Where it is another one, sums may be rounded otherwise.
    """
    if placement.device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(placement.device)
    name = cpu_name()
    if not (is_native(placement) and native.available()):
        return name
    return f"{name} ({native.LEVELS[native.library().engine_best_level()]})"


def check_engine(placement: Placement) -> None:
    """Raise `UsageError` if nothing can compute on a CPU in this precision, or `DeviceError`."""
    if placement.precision == "fp32" or not (reason := native.why_not()):
        return
    if placement.precision in HALVES:
        probe(placement)
    else:
        raise UsageError(
            f"precision {placement.precision} needs the native engine: {reason}", "precision"
        )


def check_compile(placement: Placement) -> None:
    """Raise `UsageError` if PyTorch does not run the decoding step."""
    if is_native(placement) or placement.device == "mps":
        raise UsageError(
            f"compile works on CUDA GPUs, not on {placement.device} in {placement.precision}; "
            "leave it out",
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
    if not is_native(placement):
        return _torch_decoder(directory, adapters, placement, tokens, named, compiled)
    if placement.precision == "fp32":
        config, tensors = checkpoint.read(directory, adapters)
        weights = {name: tensor.to_numpy() for name, tensor in tensors.items()}
        return _cpu_decoder(config, weights, tokens, named)
    return _coded_decoder(directory, adapters, tokens, placement.precision, named, progress)


def open_network(directory: Path, placement: Placement, adapters: Sequence[Chosen] = ()) -> GPT2:
    """Load the weights of a checkpoint into the reference model. Raises as `open_decoder`."""
    import torch

    dtype = getattr(torch, torch_name(placement.precision))
    return checkpoint.load(directory, adapters, device=placement.device, dtype=dtype)


def open_random(
    config: ModelConfig,
    placement: Placement,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Decoder:
    """As `open_decoder`, with random weights of a config's size: no file is read or written."""
    from gpt2cli.weights.random_weights import RandomWeights

    weights = RandomWeights(config, progress)
    if is_native(placement):
        if placement.precision == "fp32":
            return _cpu_decoder(config, weights, tokens, {})
        from gpt2cli.decoders.native.decoder import EngineDecoder

        return EngineDecoder(config, weights, tokens, precision=placement.precision)
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

    if not native.available() or are_kept(directory, precision, adapters):
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
    from gpt2cli.decoders.torch_decoder import TorchDecoder

    return TorchDecoder(open_network(directory, placement, adapters), tokens, compiled, **named)


def _coded_decoder(
    directory: Path,
    adapters: Sequence[Chosen],
    tokens: int | None,
    precision: str,
    named: _Named,
    progress: Progress | None,
) -> Decoder:
    from gpt2cli.decoders.native.decoder import EngineDecoder
    from gpt2cli.decoders.native.quantize import HEAD, identity, open_coded, stored_as

    known = identity(directory, adapters)
    config, tensors = checkpoint.read(directory, adapters)
    codes = stored_as(config, tensors, precision)
    if codes is None:
        codes = open_coded(directory, known, config, tensors, precision, progress, adapters)
    floats = set(tensors) - set(codes) | ({HEAD} if precision in QUANTIZED else set())
    weights = {name: tensors[name].to_numpy() for name in floats}
    return EngineDecoder(config, weights, tokens, precision=precision, codes=codes, **named)
