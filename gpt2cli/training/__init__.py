"""A GPT-2 from texts: documents, tokens, rows, optimiser, trainer, state."""
