"""`python -m gpt2cli`: the same as the command `gpt2`."""

from gpt2cli.cli import run

run()
