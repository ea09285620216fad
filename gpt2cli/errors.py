"""Every failure that a user can cause, as one family of exceptions.

The library raises them with a sentence that says what is wrong and what to do;
`gpt2cli.cli` alone turns them into a line on stderr and an exit code.
"""

import re
from collections.abc import Mapping


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
    match = re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text)
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
