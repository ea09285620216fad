"""A model's names and files: sources, cache, downloads, checkpoints."""
