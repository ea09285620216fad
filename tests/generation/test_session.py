"""A text by turns equals fresh generations of the same tokens, and reads only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from helpers import BYTES, Rule, ScriptedDecoder, certain, decoders
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2cli.arrays import NDArray
from gpt2cli.config import spec
from gpt2cli.config.sampling import SamplingConfig
from gpt2cli.decoders.pages import Chunk
from gpt2cli.errors import UsageError
from gpt2cli.generation.loop import generate
from gpt2cli.generation.request import Event, GenerationConfig
from gpt2cli.generation.session import Session, follow
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.window import fit_prompt

GREEDY = GenerationConfig(SamplingConfig(temperature=0), max_tokens=5)


def arithmetic(answer: Sequence[int] = ()) -> Rule:
    """The tokens of an answer, then letters that depend on every token of the text."""
    left = list(answer)

    def rule(row: int, text: Sequence[int]) -> NDArray:
        mixed = sum((i + 1) * token for i, token in enumerate(text))
        return certain(left.pop(0) if left else ord("a") + mixed % 26)

    return rule


class InterruptedDecoder(ScriptedDecoder):
    """Raises KeyboardInterrupt at a read that is `countdown` from now, before it or after it."""

    countdown = -1
    late = False

    def _compute(self, chunks: Sequence[Chunk], tables: Sequence[Sequence[int]]) -> Any:
        self.countdown -= 1
        if self.countdown == -1 and not self.late:
            raise KeyboardInterrupt
        logits = super()._compute(chunks, tables)
        if self.countdown == -1:
            raise KeyboardInterrupt
        return logits


def text_of(events: Any) -> str:
    return "".join(event.text for event in events)


def fresh(prompt: Sequence[int], config: GenerationConfig, context_length: int = 1000) -> str:
    decoder = ScriptedDecoder(arithmetic(), context_length=context_length)
    return text_of(generate(decoder, BYTES, fit_prompt(prompt, context_length), config))


def test_a_turn_reads_its_own_tokens_and_the_one_that_nobody_has_read() -> None:
    decoder = ScriptedDecoder(arithmetic())
    session = Session(decoder, BYTES, GREEDY)
    list(session.complete("hello"))
    assert decoder.tokens_read == 5 + 4  # the last of five new tokens is not needed
    list(session.complete(" you"))
    assert decoder.tokens_read == 9 + 1 + 4 + 4
    list(session.complete(""))
    assert decoder.tokens_read == 18 + 1 + 4


def test_trying_again_reads_one_token_and_undoing_none() -> None:
    decoder = ScriptedDecoder(arithmetic())
    session = Session(decoder, BYTES, GREEDY)
    first = text_of(session.complete("hello"))
    read = decoder.tokens_read
    assert text_of(session.retry()) == first  # greedy: the seed changes nothing
    assert decoder.tokens_read == read + 1 + 4
    assert session.text == "hello" + first
    list(session.complete("more"))
    read = decoder.tokens_read
    assert session.undo() == 4 + 5
    assert session.text == "hello" + first
    assert decoder.tokens_read == read


@given(
    turns=st.lists(
        st.one_of(
            st.text(alphabet="xyz é", max_size=8),
            st.sampled_from(["/undo", "/retry", "/early", "/interrupt", "/late", "/clear"]),
        ),
        max_size=12,
    ),
    context_length=st.sampled_from([8, 17, 1000]),
)
@settings(deadline=None, max_examples=200)
def test_whatever_happens_the_next_completion_is_that_of_its_window(
    turns: list[str], context_length: int
) -> None:
    decoder = InterruptedDecoder(arithmetic(), context_length=context_length)
    session = Session(decoder, BYTES, GREEDY)
    for turn in turns:
        before = session.text
        if turn == "/clear":
            session.clear()
        elif turn in ("/undo", "/retry") and session._turns:
            list(session.retry()) if turn == "/retry" else session.undo()
        elif turn in ("/interrupt", "/late"):
            decoder.countdown, decoder.late = 2, turn == "/late"
            shown: list[str] = []
            with pytest.raises(KeyboardInterrupt):
                shown.extend(event.text for event in session.complete("?"))
            assert session.text == before + "?" + "".join(shown)
        elif turn == "/early":
            with closing(session.complete("!")) as events:
                two = next(events).text + next(events).text
            assert session.text == before + "!" + two
        elif turn[:1] != "/" and (before or turn):
            expected = fresh(session.window + BYTES.encode(turn), GREEDY, context_length)
            assert text_of(session.complete(turn)) == expected
            assert session.text == before + turn + expected
        assert len(session.window) <= context_length


def test_one_long_completion_slides_as_generate_does() -> None:
    long = replace(GREEDY, max_tokens=60)
    session = Session(ScriptedDecoder(arithmetic(), context_length=16), BYTES, long)
    assert text_of(session.complete("hello")) == fresh(b"hello", long, 16)
    assert len(session.ids) == 65  # nothing of the text itself is lost
    assert session.dropped > 0
    assert session.window == session.ids[session.dropped :]


def test_what_follows_an_undone_slide_is_as_if_it_had_not_been() -> None:
    session = Session(ScriptedDecoder(arithmetic(), context_length=20), BYTES, GREEDY)
    list(session.complete("hello"))
    first = text_of(session.complete("you"))
    assert session.dropped == 0
    list(session.complete("and many more"))
    assert session.dropped > 0
    session.undo()
    assert session.dropped == 0
    assert text_of(session.retry()) == first


@pytest.mark.parametrize(
    ("answer", "stop", "shown"),
    [
        ("one. two", (". t",), "one"),
        ("abé", ("é",), "ab"),
        ("no", ("no",), ""),
        ("ends", ("never",), "ends"),
    ],
)
def test_the_text_is_what_was_shown_without_the_stop_string(
    answer: str, stop: tuple[str, ...], shown: str
) -> None:
    settings = replace(GREEDY, max_tokens=len(answer.encode()), stop=stop)
    session = Session(ScriptedDecoder(arithmetic(answer.encode())), BYTES, settings)
    assert text_of(session.complete("> ")) == shown
    assert session.text == "> " + shown


def test_a_stop_string_inside_a_token_leaves_what_comes_before_it() -> None:
    pair = Tokenizer({bytes([i]): i for i in range(256)} | {b"ab": 256}, {})
    decoder = ScriptedDecoder(arithmetic([ord("x"), 256]))
    session = Session(decoder, pair, replace(GREEDY, stop=("b",)))
    assert text_of(session.complete(">")) == "xa"
    assert session.ids == [*b">xa"]


def test_early_stopping_drops_half_a_character_and_a_half_stop_string() -> None:
    decoder = ScriptedDecoder(arithmetic("aé the".encode()))
    session = Session(decoder, BYTES, replace(GREEDY, max_tokens=9, stop=("then",)))
    with closing(session.complete(">")) as events:
        assert [next(events).text for _ in range(2)] == ["a", ""]
    assert session.text == ">a"


def test_a_finished_completion_keeps_half_a_character_for_the_next() -> None:
    decoder = ScriptedDecoder(arithmetic("é".encode()))
    session = Session(decoder, BYTES, replace(GREEDY, max_tokens=1))
    assert text_of(session.complete(">")) == "\N{REPLACEMENT CHARACTER}"
    list(session.complete(""))
    assert session.text == ">é"
    assert session.pieces == [">", r"\xc3", r"\xa9"]


def test_each_completion_takes_the_next_seed() -> None:
    flat = GenerationConfig(SamplingConfig(temperature=50), max_tokens=20, seed=3)
    session = Session(ScriptedDecoder(arithmetic()), BYTES, flat)
    first, second = text_of(session.complete("x")), text_of(session.retry())
    assert first == fresh(b"x", flat)
    assert second == fresh(b"x", replace(flat, seed=4))
    assert session.config.seed == 5


def test_there_must_be_something_to_go_on_with_and_to_take_back() -> None:
    session = Session(ScriptedDecoder(arithmetic()), BYTES, GREEDY)
    for action, message in (
        (lambda: list(session.complete("")), "there is no text yet"),
        (session.undo, "nothing to take back"),
        (lambda: list(session.retry()), "nothing to try again"),
    ):
        with pytest.raises(UsageError, match=message):
            action()
    list(session.complete("x"))
    session.clear()
    assert session.text == ""
    with pytest.raises(UsageError):
        session.undo()


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", "ROMEO:", "ROMEO:"),
        ("end", "ROMEO:", "\nROMEO:"),
        ("end\n", "ROMEO:", "ROMEO:"),
        ("end", " of", " of"),
        ("end", "", ""),
    ],
)
def test_a_line_follows_on_a_line_of_its_own_unless_it_begins_with_a_space(
    text: str, line: str, expected: str
) -> None:
    assert follow(text, line) == expected


BARD = spec.BUNDLED_DIR / "bard"


@pytest.mark.parametrize("kind", ["torch", "numpy", "native"])
def test_bard_goes_on_as_from_a_fresh_prompt_of_the_same_tokens(kind: str) -> None:
    make = decoders(kind, BARD)
    tokenizer = Tokenizer.load(BARD)
    settings = GenerationConfig(SamplingConfig(temperature=0.8), max_tokens=12, seed=1)
    session = Session(make(), tokenizer, settings)
    other = make()

    def check(events: Any, new: str, before: list[int]) -> None:
        current = session.config
        got: list[Event] = list(events)
        prompt = before + tokenizer.encode(new)
        assert got == list(generate(other, tokenizer, prompt, current))

    check(session.complete("ROMEO:"), "ROMEO:", [])
    before = list(session.ids)
    check(session.complete("\nJULIET:"), "\nJULIET:", before)
    check(session.retry(), "\nJULIET:", before)
    session.undo()
    assert session.ids == before
    check(session.complete(" and so"), " and so", before)
