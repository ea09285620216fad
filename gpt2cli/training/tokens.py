"""Documents as token ids in one memory-mapped file, made once and read by every run.

The file is in safetensors' format. `ids` begin with end-of-text, and so does whatever follows a
document: each text can be learned from its first token on, which stands after that token.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpt2cli.arrays import NDArray
from gpt2cli.errors import GPT2CLIError, TokenizerError, UsageError, WeightsError
from gpt2cli.files import atomic
from gpt2cli.progress import Advance
from gpt2cli.text.tokenizer import Tokenizer
from gpt2cli.text.vocabulary import END_OF_TEXT
from gpt2cli.training.documents import Document, Documents
from gpt2cli.training.shuffling import shuffled
from gpt2cli.weights.safetensors import INTEGERS, read_mapped, read_metadata

MOST_HELD_OUT = 1 << 20  # bytes of text that validation reads, unless asked otherwise
_HEADER = 4096  # bytes, written last
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """D documents; document i is `ids[bounds[i] : bounds[i + 1]]`, its end-of-text included.

    Of these tokens the first `prompts[i]` are its prompt. Of the D the last `held_out` are for
    validation; None where that is still to be chosen. `digest` identifies all of this, and
    `empty` counts what was skipped for having no text.
    """

    ids: NDArray  # (N,) uint16 or uint32, in the file
    bounds: NDArray  # (D + 1,) int64
    prompts: NDArray  # (D,) int64
    prompt_bytes: NDArray  # (D,) int64, in UTF-8
    text_bytes: NDArray  # (D,) int64: of what comes after the prompt
    held_out: int | None
    empty: int
    digest: str
    path: Path

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.prompts)

    def split(
        self, seed: int, fraction: float, most: int = MOST_HELD_OUT
    ) -> tuple[NDArray, NDArray]:
        """The documents to train on and those for validation, in their order; never none.

        Where it is to be chosen, validation gets documents at random, as long as they fit into this
        fraction of all bytes and at most so many; where none does, it gets the smallest. Raises
        `UsageError` where there is nothing to choose from.
        """
        if self.held_out is not None:
            first = len(self) - self.held_out
            return np.arange(first), np.arange(first, len(self))
        if len(self) < 2:
            raise UsageError(
                "a single prompt and completion cannot be split; add a validation file"
            )
        order, sizes = shuffled(len(self), seed), self.prompt_bytes + self.text_bytes
        budget = min(fraction * sizes.sum(), most)
        is_chosen, smallest = np.zeros(len(self), bool), sizes.min()
        for i in order[: len(self) - 1].tolist():
            if sizes[i] <= budget:
                is_chosen[i] = True
                budget -= sizes[i]
            elif budget < smallest:
                break
        if not is_chosen.any():
            is_chosen[np.argmin(sizes)] = True
        return np.flatnonzero(~is_chosen), np.flatnonzero(is_chosen)


def prepare(
    documents: Documents,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    validation: Documents | None = None,
    fraction: float = 0.1,
    most: int = MOST_HELD_OUT,
    advance: Advance = lambda _: None,
) -> Tokens:
    """The documents as tokens, from a file in `directory` that is made unless it is there.

    It is made anew once a file, the vocabulary or a setting is another. Without `validation` the
    end of a text that is the only document is held out, of this fraction of its bytes and at most
    so many. Such a text ends nowhere: no part of it gets an end-of-text. `advance` is told of
    tokens. Raises `UsageError` for documents that cannot be used, or if there are none, and
    `GPT2CLIError` where the file cannot be written.
    """
    if tokenizer.end_of_text is None:
        raise UsageError(f"this model has no {END_OF_TEXT} token to end documents with")
    sources = [documents] if validation is None else [documents, validation]
    made_of = (
        _VERSION,
        [(source.identity(), repr(source.fields)) for source in sources],
        tokenizer.fingerprint(),
        None if validation else (fraction, most),
    )
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    path = directory / f"tokens-{key[:16]}.safetensors"
    try:
        return open_tokens(path)
    except WeightsError:  # not there, or damaged
        pass
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as stream:
            writer = _Writer(stream, tokenizer, advance)
            held_out = _write(writer, documents, validation, fraction, most)
            writer.finish(held_out, sum(source.empty for source in sources))
    except OSError as error:
        raise GPT2CLIError(f"cannot write {path}: {error.strerror or error}") from None
    return open_tokens(path)


def open_tokens(path: Path) -> Tokens:
    """A file that `prepare` made. Raises `WeightsError` if it is damaged or not there."""
    metadata = read_metadata(path)
    try:
        stored = {name: t.bits for name, t in read_mapped(path, dtypes=INTEGERS).items()}
        ids = stored.pop("ids")
        arrays = {name: np.array(bits) for name, bits in stored.items()}
        held_out = int(metadata["held_out"]) if "held_out" in metadata else None
        return Tokens(
            ids,
            held_out=held_out,
            empty=int(metadata["empty"]),
            digest=metadata["digest"],
            path=path,
            **arrays,
        )
    except (KeyError, ValueError, TypeError):
        raise WeightsError(f"{path} is damaged; it holds no tokens") from None


def _write(
    writer: _Writer,
    documents: Documents,
    validation: Documents | None,
    fraction: float,
    most: int,
) -> int | None:
    """Write all documents. → how many at the end are held out; None if that is to be chosen"""
    if validation is None and (size := _size_of_single(documents)) is not None:
        for single in documents:
            head, tail = _cut(single.text, size - min(int(size * fraction), most))
            writer.add(Document(head, None, single.where), ends=False)
            writer.add(Document(tail, None, single.where), ends=False, follows=True)
        return 1
    if not writer.add_all(documents):
        raise UsageError("there is no text to train on: all documents are empty")
    held_out = writer.add_all(validation) if validation is not None else None
    if held_out == 0:
        raise UsageError("there is no text for validation: all documents are empty")
    return held_out


class _Writer:
    """Writes documents as they come; what must be known of each stays in memory."""

    def __init__(self, stream: BinaryIO, tokenizer: Tokenizer, advance: Advance) -> None:
        assert tokenizer.end_of_text is not None
        self._stream, self._tokenizer, self._advance = stream, tokenizer, advance
        self._digest = hashlib.sha256()
        self._count = 0
        self._arrays = {
            name: array("q") for name in ("bounds", "prompts", "prompt_bytes", "text_bytes")
        }
        stream.write(bytes(_HEADER))
        self._put([tokenizer.end_of_text])
        self._arrays["bounds"].append(self._count)

    def add_all(self, documents: Iterable[Document]) -> int:
        """→ how many there were"""
        before = len(self._arrays["prompts"])
        for document in documents:
            self.add(document)
        return len(self._arrays["prompts"]) - before

    def add(self, document: Document, *, ends: bool = True, follows: bool = False) -> None:
        """Write a document, and an end-of-text if it `ends`. Raises `TokenizerError`.

        If it `follows` what was written before, nothing stands in front of it.
        """
        begin, tokenizer, prompt, size = self._count, self._tokenizer, document.prompt, 0

        def measured() -> Iterator[str]:
            nonlocal size
            for piece in document.text:
                size += len(piece.encode())
                yield piece

        try:
            self._put(tokenizer.encode(prompt) if prompt else [])
            prompt_length = self._count - begin
            for ids in tokenizer.encode_parts(measured(), follows=follows or bool(prompt)):
                self._put(ids)
        except TokenizerError as error:
            raise TokenizerError(f"{document.where}: {error}") from None
        if ends:
            self._put([tokenizer.end_of_text or 0])
        values = (self._count, prompt_length, len((prompt or "").encode()), size)
        for known, value in zip(self._arrays.values(), values, strict=True):
            known.append(value)

    def finish(self, held_out: int | None, empty: int) -> None:
        """Write what is known of the documents, and the header."""
        kind = "U16" if self._tokenizer.typecode == "H" else "U32"
        shapes = {"ids": (kind, self._count)}
        for name, values in self._arrays.items():
            shapes[name] = ("I64", len(values))
            self._stream.write(values)
            self._digest.update(values)
        metadata = {"empty": str(empty), "digest": self._digest.hexdigest()}
        if held_out is not None:
            metadata["held_out"] = str(held_out)
        header: dict[str, object] = {"__metadata__": metadata}
        begin = 0
        for name, (kind, length) in shapes.items():
            end = begin + length * int(INTEGERS[kind][0][-1])
            header[name] = {"dtype": kind, "shape": [length], "data_offsets": [begin, end]}
            begin = end
        self._stream.seek(0)
        self._stream.write((_HEADER - 8).to_bytes(8, "little"))
        self._stream.write(json.dumps(header).encode().ljust(_HEADER - 8))

    def _put(self, ids: list[int]) -> None:
        packed = array(self._tokenizer.typecode, ids).tobytes()
        self._stream.write(packed)
        self._digest.update(packed)
        self._count += len(ids)
        self._advance(len(ids))


def _size_of_single(documents: Iterable[Document]) -> int | None:
    """The bytes of a text that is the only document; None where there are more, or a prompt."""
    size = None
    for document in documents:
        if size is not None or document.prompt is not None:
            return None
        size = sum(len(piece.encode()) for piece in document.text)
    return size


def _cut(pieces: Iterable[str], at: int) -> tuple[Iterator[str], Iterator[str]]:
    """A text before and after a byte, or the next at which a character begins; read in turn."""
    rest, coming = [], iter(pieces)

    def head() -> Iterator[str]:
        left = at
        for piece in coming:
            data = piece.encode()
            if len(data) <= left:
                left -= len(data)
                yield piece
                continue
            while left < len(data) and data[left] & 0xC0 == 0x80:  # not inside a character
                left += 1
            rest.append(data[left:].decode())
            yield data[:left].decode()
            return

    return head(), chain(rest, coming)
