"""A decoder that reads only what it does not hold yet."""

from __future__ import annotations

import numpy as np
from helpers import ScriptedDecoder, certain

from gpt2cli.decoders.prefix_cache import PrefixCache


def test_a_prefix_cache_is_a_decoder_that_reads_what_differs() -> None:
    decoder = ScriptedDecoder(lambda _, text: certain(sum(text)))
    cache = PrefixCache(decoder)
    logits = cache.prefill([[1, 2, 3, 4]])
    assert (decoder.read, cache.length) == (4, 4)
    np.testing.assert_array_equal(cache.prefill([[1, 2, 3, 4]]), logits)
    assert decoder.read == 5
    cache.prefill([[1, 2, 9]])
    assert (decoder.read, decoder.texts[0]) == (6, [1, 2, 9])
    cache.prefill([[7]])
    assert (decoder.read, decoder.texts[0]) == (7, [7])
