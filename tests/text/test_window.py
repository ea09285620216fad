"""Windows of a text that is longer than the context."""

from __future__ import annotations

from gpt2cli.text.window import fit_prompt, slide


def test_a_prompt_longer_than_the_context_loses_its_oldest_tokens() -> None:
    assert fit_prompt(range(16), 16) == list(range(16))
    assert fit_prompt(range(17), 16) == list(range(5, 17))
    assert slide(range(100), 16) == list(range(88, 100))
    assert fit_prompt([1, 2], 1) == [2]
