"""What `/v1/completions` answers: choices, the log-probabilities of their tokens, and usage."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2cli.generation.record import Completion, Sample
    from gpt2cli.generation.request import ChosenLogprob
    from gpt2cli.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer shows of what was generated for a prompt.

    `echo` is put before each text, with its log-probabilities if they are `listed`. Of more than
    `n` samples those are shown whose tokens are most probable on average; of a text that was not
    `asked` for nothing.
    """

    echo: str = ""
    n: int | None = None
    listed: bool = False
    asked: bool = True


class Lister:
    """Lists the tokens of one text as OpenAI does, from its beginning or as they come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0  # in characters of the text
        self._utf8 = _new_decoder()

    def echo(self, chosen: Iterable[tuple[int, ChosenLogprob | None]], text: str) -> dict[str, Any]:
        """The tokens of a prompt; `text`, in which they are shown, precedes that of the others."""
        found = self.list(chosen)
        self._offset, self._utf8 = len(text), _new_decoder()
        return found

    def list(self, chosen: Iterable[tuple[int, ChosenLogprob | None]]) -> dict[str, Any]:
        """The next tokens, each by its id, where they begin, and how probable they were."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for token_id, found in chosen:
            tokens.append(name_of(token_id, self._tokenizer))
            logprobs.append(None if found is None else found.logprob)
            tops.append(None if found is None else self._top(found))
            offsets.append(self._place(self._tokenizer.decode_bytes([token_id])))
        return {
            "tokens": tokens,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _place(self, data: bytes) -> int:
        """The place of the character in which the next token's first byte is."""
        shown = self._utf8.decode(data[:1])  # with what has been no character before it
        is_shown = bool(shown) and not self._utf8.getstate()[0]
        place = self._offset + len(shown) - is_shown
        self._offset += len(shown) + len(self._utf8.decode(data[1:]))
        return place

    def _top(self, found: ChosenLogprob) -> dict[str, float]:
        """The most probable tokens, and the chosen one, by names of which none is another's."""
        top: dict[str, float] = {}
        for each in {one.id: one for one in (*found.top, found)}.values():
            name = name_of(each.id, self._tokenizer)
            top[f"token_id:{each.id}" if name in top else name] = each.logprob
        return top


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def name_of(token_id: int, tokenizer: Tokenizer) -> str:
    r"""A token's text; bytes that are no characters by themselves as bytes:\xe2\x80."""
    data = tokenizer.decode_bytes([token_id])
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def choices_of(
    found: Completion, answer: Answer, prompt: Sequence[int], tokenizer: Tokenizer, first: int = 0
) -> list[dict[str, Any]]:
    """The choices of one prompt, given as tokens; they are numbered from `first`."""
    return [
        {
            "index": first + i,
            "text": answer.echo + sample.text,
            "finish_reason": finish_reason(sample.finish_reason),
            "logprobs": _logprobs(found, sample, answer, prompt, tokenizer),
            "seed": found.seed,
        }
        for i, sample in enumerate(shown_of(found, answer))
    ]


def shown_of(found: Completion, answer: Answer) -> Sequence[Sample]:
    """The samples that an answer shows, the best first if it chooses; empty if none was asked."""
    from gpt2cli.generation.record import Sample

    samples = found.samples
    if answer.n is not None and len(samples) > answer.n:
        samples = sorted(samples, key=_mean_logprob, reverse=True)[: answer.n]
    return samples if answer.asked else [Sample(finish_reason="length") for _ in samples]


def finish_reason(reason: str | None) -> str | None:
    """Why a text has ended, in OpenAI's words."""
    return "stop" if reason == "eos" else reason


def _mean_logprob(sample: Sample) -> float:
    every = [one.logprob for one in _of_text(sample)]
    return sum(every) / len(every)


def _of_text(sample: Sample) -> list[ChosenLogprob]:
    return [*sample.logprobs, *([sample.end_logprob] if sample.end_logprob else [])]


def _logprobs(
    found: Completion,
    sample: Sample,
    answer: Answer,
    prompt: Sequence[int],
    tokenizer: Tokenizer,
) -> dict[str, Any] | None:
    if not answer.listed:
        return None
    lister = Lister(tokenizer)
    echoed = zip(prompt, found.prompt_logprobs, strict=True) if found.prompt_logprobs else ()
    before = lister.echo(echoed, answer.echo)
    after = lister.list((one.id, one) for one in _of_text(sample))
    return {name: before[name] + after[name] for name in before}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """How many tokens were read and generated."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def written(found: Completion, answer: Answer) -> int:
    """The tokens that were generated for an answer, those that ended a text included."""
    return sum(sample.count for sample in found.samples) if answer.asked else 0


def completion(
    name: str,
    created: int,
    model: str,
    parts: Sequence[dict[str, Any]],
    used: Mapping[str, int] | None,
) -> dict[str, Any]:
    """An answer, or a part of one that is streamed."""
    return {
        "id": name,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": list(parts),
        "usage": used,
    }
