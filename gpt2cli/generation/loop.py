"""One prompt to text: the shortest use of the scheduler.

It knows a model only through the `Decoder` protocol, yields events and never prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from gpt2cli.decoders.prefix_cache import PrefixCache
from gpt2cli.decoders.protocol import Decoder
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.scheduler import Scheduler
from gpt2cli.generation.sequence import Ids, Sequence
from gpt2cli.sampling.sampler import Stage
from gpt2cli.text.tokenizer import Tokenizer


def generate(
    decoder: Decoder, tokenizer: Tokenizer, prompt: Ids, config: GenerationConfig
) -> Iterator[Event]:
    """Continue `prompt`, `config.samples` times at once; an event for every token.

    Raises `UsageError` for a prompt that is empty, or longer than the context: see `text.window`.
    """
    scheduler = Scheduler(decoder, tokenizer, max_sequences=config.samples)
    request = scheduler.add(prompt, config)
    try:
        while scheduler.busy:
            for _, event in scheduler.step():
                if not isinstance(event, Event):
                    raise event
                yield event
    finally:
        scheduler.cancel(request)


def explain(
    decoder: Decoder, tokenizer: Tokenizer, prompt: Ids, config: GenerationConfig
) -> list[Stage]:
    """What each rule of sampling does to the candidates of the first token after `prompt`."""
    sequence = Sequence(tokenizer, decoder.context_length, prompt, config)
    with closing(PrefixCache(decoder)) as cache:
        return sequence.sampler.explain(cache.read(sequence.ids), sequence.ids)
