"""A GPT-2 from a text file: corpus, optimiser, trainer, state."""
