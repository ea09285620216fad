"""Every failure that a user can cause, as one family of exceptions.

The library raises them with a sentence that says what is wrong and what to do;
`gpt2cli.cli` alone turns them into a line on stderr and an exit code.
"""


class GPT2CLIError(Exception):
    """The base: something failed although the command was well formed (exit code 1)."""


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
