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

    `settings` are those words of the message that name settings, in their order. Whoever
    calls these otherwise, as the command line does with its options, puts its own names there.
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
    """What was asked for cannot be: a bad value, an unknown name (exit code 2)."""


class ConfigError(UsageError):
    """A configuration file or key that does not describe a GPT-2."""


class DeviceError(UsageError):
    """A device or precision that this machine does not have."""


class WeightsError(GPT2CLIError):
    """A checkpoint that is missing, damaged or not GPT-2-shaped."""


class DownloadError(WeightsError):
    """The hub could not be reached, or refused."""


class TokenizerError(GPT2CLIError):
    """A vocabulary that cannot be read, or text that cannot be encoded with it."""


def not_numbers(name: str, tokens: int) -> WeightsError:
    """What to raise where the logits of so many tokens, read at once or not, are no numbers."""
    return WeightsError(
        f"the weights of {name} give no numbers (NaN or infinity instead) within the first "
        f"{tokens} tokens; they are damaged: fetch or train the model again"
    )


_short = reprlib.Repr()


_short.maxlevel, _short.maxlist, _short.maxdict = 2, 3, 3


_short.maxstring, _short.maxlong, _short.maxother = 60, 30, 60


def shown(value: object) -> str:
    """A value from a file as a message has room for it: cut where it is long or deep."""
    return _short.repr(value)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint such as "; did you mean 'top_p'?", or nothing when no choice is near.

    It names up to three choices, where they are about equally near.
    """
    near = nearest(word, choices)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three choices about as like `word` as the likest of them, that one first."""
    likeness = {choice: _likeness(_bare(word), _bare(choice)) for choice in choices}
    best = max(likeness.values(), default=0.0)
    least = max(cutoff, best - 0.05 if best < 1 else 1)
    near = [choice for choice in likeness if likeness[choice] >= least]
    return sorted(near, key=lambda choice: -likeness[choice])[:3]


def _bare(word: str) -> str:
    """A word without what people get wrong about names: case, dashes in front, underscores."""
    return word.lower().replace("_", "-").lstrip("-")


def _likeness(word: str, choice: str) -> float:
    """From 0 to 1; a beginning of at least two letters is most of the way to the whole word."""
    ratio = difflib.SequenceMatcher(None, word, choice).ratio()
    return (2 + ratio) / 3 if len(word) > 1 and choice.startswith(word) else ratio
