"""A text as it comes, token by token: whole characters, and stop strings that are never shown."""

from __future__ import annotations

from helpers import BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS, Vocabulary, id_lists

from gpt2cli.text.stream import StreamDecoder, TextStream


@given(
    text=st.text(alphabet="ab🙂é\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab🙂é", min_size=1, max_size=4), max_size=3),
)
@settings(deadline=None, max_examples=150)
def test_stopping_in_a_stream_equals_cutting_the_whole_text(text: str, stops: list[str]) -> None:
    stream, shown = TextStream(BYTES, stops), ""
    for token_id in text.encode():
        shown += stream.push(token_id)
        if stream.stopped:
            break
    else:
        shown += stream.flush()
    # A stream acts on the stop string that ends first; one that begins earlier may end later.
    first_end = min((text.find(s) + len(s) for s in stops if s in text), default=None)
    if first_end is None:
        assert shown == text
        return
    seen = text[:first_end]
    cut = min(seen.find(stop) for stop in stops if stop in seen)
    assert shown == seen[:cut]
    assert stream.stopped


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_streamed_pieces_add_up_to_the_decoded_text(
    vocabulary: Vocabulary, data: st.DataObject
) -> None:
    ids = data.draw(id_lists(vocabulary.ours.size))
    stream = StreamDecoder(vocabulary.ours)
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == vocabulary.ours.decode(ids)


@settings(deadline=None, max_examples=150)
@given(text=TEXTS)
def test_a_stream_shows_every_character_as_soon_as_it_is_whole(
    vocabulary: Vocabulary, text: str
) -> None:
    stream, shown, received = StreamDecoder(vocabulary.ours), "", 0
    for token_id in vocabulary.ours.encode(text):
        shown += stream.push(token_id)
        received += len(vocabulary.ours.decode_bytes([token_id]))
        assert shown == whole_characters(text, received)
    assert stream.flush() == ""
    assert shown == text


def whole_characters(text: str, size: int) -> str:
    """The longest beginning of `text` that takes at most `size` bytes of UTF-8."""
    total, count = 0, 0
    for character in text:
        total += len(character.encode("utf-8"))
        if total > size:
            break
        count += 1
    return text[:count]


def test_an_emoji_split_over_tokens_comes_in_one_piece(released: Vocabulary) -> None:
    ids = released.ours.encode("🦜")
    assert len(ids) == 3
    stream = StreamDecoder(released.ours)
    assert [stream.push(i) for i in ids] == ["", "", "🦜"]
    assert stream.flush() == ""


def test_a_character_that_is_never_finished_becomes_one_replacement(released: Vocabulary) -> None:
    stream = StreamDecoder(released.ours)
    assert [stream.push(i) for i in released.ours.encode("🦜")[:-1]] == ["", ""]
    assert stream.flush() == "\ufffd"
