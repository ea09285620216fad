"""The reference model in PyTorch of a model that is served by another engine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING

from gpt2cli.errors import UsageError
from gpt2cli.system import estimate, memory

if TYPE_CHECKING:
    from gpt2cli.api import LoadedModel
    from gpt2cli.model.gpt2 import GPT2

_SHARE = 4  # of the free memory, one part of which may be taken before anybody has asked


class Reference:
    """Opened in fp32 when it is first needed, by whichever thread; the others wait for it."""

    def __init__(self, model: LoadedModel) -> None:
        self._model, self._opening = model, Lock()
        self._network: GPT2 | None = None

    def network(self) -> GPT2:
        """The network on its device. Raises as `OpenModel.network`, and without PyTorch."""
        if find_spec("torch") is None:
            raise UsageError("looking inside a model needs PyTorch: pip install torch")
        from gpt2cli.decoders.opening import open_network

        model = self._model
        with self._opening:
            if self._network is None:
                placement = replace(model.placement, precision="fp32")
                self._network = open_network(model.directory, placement, model.adapters)
            return self._network

    def warm_up(self) -> None:
        """Open it if that takes little of the memory, and read a token."""
        model = self._model
        needed = _SHARE * estimate.weight_bytes(model.config, "fp32")
        # Whatever is wrong will be said to whoever asks for it.
        with suppress(Exception):
            if needed <= memory.available(model.placement.device):
                import torch

                network = self.network()
                with torch.inference_mode():
                    network(torch.zeros((1, 1), dtype=torch.long, device=model.placement.device))
