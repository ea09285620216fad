"""One text of a decoder, read only as far as it is not held yet."""

from __future__ import annotations

import numpy as np
from helpers import ScriptedDecoder, certain

from gpt2cli.decoders.prefix_cache import PrefixCache


def test_only_what_differs_is_read() -> None:
    decoder = ScriptedDecoder(lambda _, text: certain(sum(text)))
    cache = PrefixCache(decoder)
    logits = cache.read([1, 2, 3, 4])
    assert decoder.tokens_read == 4
    np.testing.assert_array_equal(cache.read([1, 2, 3, 4]), logits)
    assert decoder.tokens_read == 5
    np.testing.assert_array_equal(cache.read([1, 2, 9]), [certain(12)])
    assert decoder.tokens_read == 6
    np.testing.assert_array_equal(cache.read([7]), [certain(7)])
    assert decoder.tokens_read == 7


def test_the_last_few_logits_are_those_after_each_of_the_last_ids() -> None:
    decoder = ScriptedDecoder(lambda _, text: certain(sum(text)))
    cache = PrefixCache(decoder)
    expected = [certain(3), certain(6), certain(10)]
    np.testing.assert_array_equal(cache.read([1, 2, 3, 4], every=3), expected)
    np.testing.assert_array_equal(cache.read([1, 2, 3, 4], every=3), expected)
    assert decoder.tokens_read == 4 + 3
    assert [chunk.every for [chunk] in decoder.reads] == [False, True, True]


def test_a_closed_one_leaves_its_pages() -> None:
    decoder = ScriptedDecoder(lambda _, text: certain(1))
    cache = PrefixCache(decoder)
    cache.read([1] * 100)
    assert decoder.free_pages < decoder.pages
    cache.close()
    assert decoder.free_pages == decoder.pages
