"""The texts that `bard` has read are cleaned, and share nothing with what is held out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PLAY = """THE PLAY

PERSONS REPRESENTED.

ANNA, a queen.

ACT I.

SCENE I. A room.

[Enter ANNA
and others.]

ANNA.
    Good morrow,
My lords. [Aside.] I fear them.

[Exit.]

Yet I must stay with them.

MRS. FORD. Come, madam.

SCENE II. Another room.

Ber.
Who's there?

Fran.
Nay, answer me.
"""


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    path = Path(__file__).parents[1] / "docs" / "bard_corpus.py"
    spec = importlib.util.spec_from_file_location("bard_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scenes_are_speeches_in_the_form_of_tinyshakespeare(corpus: ModuleType) -> None:
    assert list(corpus.scenes(PLAY)) == [
        "ANNA:\nGood morrow,\nMy lords.  I fear them.\nYet I must stay with them.\n\n"
        "MRS. FORD:\nCome, madam.\n",
        "BER:\nWho's there?\n\nFRAN:\nNay, answer me.\n",
    ]


def test_books_lose_their_title_verse_numbers_and_licence(corpus: ModuleType) -> None:
    text = (
        "[The Book by A. Body 1800]\n\n\n\nCHAPTER I\n\n1:1 In the beginning.  1:2 And then.\n"
        "End of Project Gutenberg's The Book\nSmall print.\n"
    )
    assert corpus.book(text) == "CHAPTER I\n\nIn the beginning.  And then.\n"


def test_tinyshakespeare_is_cut_where_speeches_begin(corpus: ModuleType) -> None:
    speeches = [f"NAME {i}:\nLine {i}." for i in range(corpus.SPEECHES + 3)]
    first, second = corpus.documents("\n\n".join(speeches) + "\n")
    assert first.startswith("NAME 0:\n")
    assert second == "\n\n".join(speeches[-3:]) + "\n"


def test_texts_with_eight_words_of_what_is_held_out_are_left_out(corpus: ModuleType) -> None:
    held_out = "One two three four five six seven eight nine."
    shares, near = (
        "so ONE two, three\nfour five six seven eight!",
        "two three four five six seven nine",
    )
    assert corpus.without(held_out, [shares, near]) == [near]


def test_another_file_than_the_known_one_is_refused(corpus: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "books.tgz"
    file.write_bytes(b"not it")
    with pytest.raises(SystemExit, match="is not the file"):
        corpus.read(str(file), corpus.BOOKS)
