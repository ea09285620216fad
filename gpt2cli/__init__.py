"""gpt2cli: GPT-2 in a shell, and a source that is meant to be read.

Read in this order: `config` (what a GPT-2 is, in eight numbers), `model` (the network),
`tokenizer`, `checkpoint` (where weights come from), `sampling` (logits to a token),
`generation` (the loop), `training`. `cli` is the thin layer that a shell sees.
"""

__version__ = "0.1.0"
