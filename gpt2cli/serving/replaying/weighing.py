"""How near two texts were to being the same where they part: by the model, and by the draw."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from gpt2cli.arrays import Array
from gpt2cli.decoders.prefix_cache import PrefixCache
from gpt2cli.errors import GPT2CLIError
from gpt2cli.generation.sequence import Sequence as Text
from gpt2cli.sampling.rules import generator, log_probabilities, uniforms
from gpt2cli.text.window import slide

if TYPE_CHECKING:
    from gpt2cli.decoders.protocol import Decoder
    from gpt2cli.generation.request import GenerationConfig
    from gpt2cli.text.tokenizer import Tokenizer

NEAR_NATS, NEAR_SHARE = 0.01, 0.001  # what other rounding moves, in half precision too


@dataclass(frozen=True, slots=True)
class Weighed:
    """Both tokens' log-probabilities by the model, in nats, the recorded one's first.

    `miss` is how far the recorded token was from being chosen now: of a greedy text in nats, of a
    sampled one as the share of probability between the draw and that token. None where a token is
    not known, or cannot come at all.
    """

    logprobs: tuple[float | None, float | None]
    miss: float | None = None
    is_drawn: bool = False

    @property
    def is_near(self) -> bool:
        """Whether rounding may have decided."""
        return self.miss is not None and self.miss < (NEAR_SHARE if self.is_drawn else NEAR_NATS)


def weigh(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    config: GenerationConfig,
    sample: int,
    same: Sequence[int],
    tokens: tuple[int | None, int | None],
) -> Weighed:
    """Weigh the recorded token and that of now, which follow the prompt and `same` tokens."""
    recorded, now = (
        token if token is not None and token < tokenizer.size else None for token in tokens
    )
    window = list(prompt)
    for token in same:
        window.append(token)
        if len(window) > decoder.context_length:
            window = slide(window, decoder.context_length)
    with closing(PrefixCache(decoder)) as cache:
        logits = cache.read(window)
    own, other = (
        None if token is None else log_probabilities(logits, [token], 0)[0][0]
        for token in (recorded, now)
    )
    rules = config.sampling
    if recorded is None or now is None or rules.xtc_probability or rules.mirostat_tau:
        return Weighed((own, other))
    is_drawn = rules.temperature > 0
    try:
        plain = replace(config, logprobs=None, prompt_logprobs=None)
        text = Text(tokenizer, decoder.context_length, prompt, plain, sample)
        for token in same:
            text.append(token, logits)
        miss = _miss(text, logits, recorded, now, is_drawn)
    except GPT2CLIError:  # where a constraint would not have let it come so far
        miss = None
    return Weighed((own, other), miss, is_drawn)


def _miss(text: Text, logits: Array, recorded: int, now: int, is_drawn: bool) -> float | None:
    """How far a token was from being chosen, by the probabilities that all rules leave."""
    stages = text.sampler.explain(logits, text.ids, top=logits.shape[1])
    chances = np.zeros(logits.shape[1])
    for token, _, after in stages[-1].top:
        chances[token] = after
    if not (chances[recorded] > 0 and chances[now] > 0):
        return None
    if not is_drawn:
        return abs(float(np.log(chances[recorded] / chances[now])))
    place = len(text.ids) - text.prompt_length
    drawn = uniforms(generator(text.config.seed, text.sample), 1)
    [at] = next(islice(drawn, place, None))
    # Tokens lie side by side in the order of their ids, each as wide as it is probable.
    end = float(chances[: recorded + 1].sum())
    return max(end - float(chances[recorded]) - at, at - end, 0.0)
