"""What a model says of the next token, read by the scheduler beside the texts that it writes."""

from __future__ import annotations

import numpy as np

from gpt2cli.arrays import Array, NDArray
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.sequence import Ids, Sequence
from gpt2cli.text.tokenizer import Tokenizer

_GREEDY = GenerationConfig(SamplingConfig(temperature=0), max_tokens=1)


class NextLogits(Sequence):
    """A text that ends where it would be continued: `logits` are then those of its next token.

    Queued like any other, it shares what others have read, and waits for its turn.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, prompt: Ids) -> None:
        super().__init__(tokenizer, context_length, prompt, _GREEDY)
        self.logits: NDArray = np.empty(0, np.float32)  # (V,)

    def append(self, token_id: int, logits: Array) -> Event:
        """Keep the logits (1, V), and end."""
        self.logits = np.array(logits[0].tolist(), np.float32)
        self.finish_reason = "length"
        return Event(self.sample, None, "", "length")
