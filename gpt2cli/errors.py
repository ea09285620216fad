"""Every failure that a user can cause, as one family of exceptions.

The library raises them with a sentence that says what is wrong and what to do;
`gpt2cli.cli` alone turns them into a line on stderr and an exit code.
"""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping


class GPT2CLIError(Exception):
    """The base: something failed although the command was well formed (exit code 1).

    `settings` are the words of the message that name settings, in order. A caller with other
    names for them, such as the command line with its options, substitutes its own.
    """

    def __init__(self, message: str = "", *settings: str) -> None:
        super().__init__(message)
        self.settings = settings

    def renamed(self, names: Mapping[str, str]) -> str:
        """The message with other names for the settings; nothing else in it is touched."""
        done, rest = "", str(self)
        for setting in self.settings:
            before, found, after = _partition(rest, setting)
            done += before + names.get(found, found)
            rest = after
        return done + rest


def _partition(text: str, word: str) -> tuple[str, str, str]:
    """`str.partition` at a whole word."""
    match = re.search(rf"(?<![\w./-]){re.escape(word)}(?![\w/-])", text)
    return (text[: match.start()], word, text[match.end() :]) if match else ("", "", text)


class UsageError(GPT2CLIError):
    """An invalid request: a bad value, an unknown name (exit code 2)."""


class ContextError(UsageError):
    """A text that does not fit the context."""


class ConfigError(UsageError):
    """A configuration file or key that does not describe a GPT-2."""


class DeviceError(UsageError):
    """A device or precision that this machine does not have."""


class WeightsError(GPT2CLIError):
    """A checkpoint that is missing, damaged or not GPT-2-shaped."""


class DownloadError(WeightsError):
    """The hub could not be reached, or refused the request."""


class TokenizerError(GPT2CLIError):
    """A vocabulary that cannot be read, or text that cannot be encoded with it."""


def not_numbers(name: str, tokens: int) -> WeightsError:
    """The error for logits that are not finite within the first `tokens` tokens."""
    return WeightsError(
        f"the weights of {name} give no numbers (NaN or infinity instead) within the first "
        f"{tokens} tokens; they are damaged: fetch or train the model again"
    )


_short = reprlib.Repr()


_short.maxlevel, _short.maxlist, _short.maxdict = 2, 3, 3


_short.maxstring, _short.maxlong, _short.maxother = 60, 30, 60


def shown(value: object) -> str:
    """A value from a file, shortened for a message where it is long or deeply nested."""
    return _short.repr(value)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint such as "; did you mean 'top_p'?", or nothing when no choice is near.

    It names up to three choices, where they are about equally near.
    """
    near = nearest(word, choices)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three choices about as similar to `word` as the most similar, which comes first."""
    likeness = {choice: _likeness(_bare(word), _bare(choice)) for choice in choices}
    best = max(likeness.values(), default=0.0)
    least = max(cutoff, best - 0.05 if best < 1 else 1)
    near = [choice for choice in likeness if likeness[choice] >= least]
    return sorted(near, key=lambda choice: -likeness[choice])[:3]


def _bare(word: str) -> str:
    """A word without case, leading dashes and underscores, which people get wrong."""
    return word.lower().replace("_", "-").lstrip("-")


def _likeness(word: str, choice: str) -> float:
    """Similarity from 0 to 1; a prefix of at least two letters counts as close."""
    ratio = difflib.SequenceMatcher(None, word, choice).ratio()
    return (2 + ratio) / 3 if len(word) > 1 and choice.startswith(word) else ratio
