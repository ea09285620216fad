"""Random weights of a model's size, to measure its speed without the real ones.

What a model computes depends on its weights; the time it takes, only on their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.config.model import ModelConfig
from gpt2cli.progress import Progress
from gpt2cli.weights.names import parameter_shapes

SEED = 0
_WIDTH = 0.07  # of a uniform distribution: its standard deviation is GPT-2's at the start, 0.02


class RandomWeights(Mapping[str, NDArray]):
    """Every parameter of `model.GPT2` in fp32, by its name: made on access, and not kept.

    So memory holds only what the caller keeps. `progress` is called with the bytes made.
    """

    def __init__(self, config: ModelConfig, progress: Progress | None = None) -> None:
        self._shapes = parameter_shapes(config)
        self._seeds = {name: [SEED, i] for i, name in enumerate(self._shapes)}
        self._progress = progress
        self._total = 4 * sum(int(np.prod(shape)) for shape in self._shapes.values())
        self._made = 0

    def __getitem__(self, name: str) -> NDArray:
        random = np.random.default_rng(self._seeds[name])
        weight = random.random(self._shapes[name], dtype=np.float32)
        weight -= 0.5
        weight *= _WIDTH
        if name.endswith(".scale"):
            weight += 1
        if self._progress:
            # The token embedding, which is quantized and also kept in fp32, is made twice.
            self._made = min(self._made + weight.nbytes, self._total)
            self._progress("random weights", self._made, self._total)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
