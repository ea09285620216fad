"""GGUF, the one-file format of llama.cpp and of what is built on it: read, written, adapters too.

The `gguf` package knows how each type of tensor is coded; the extra `gguf` brings it.
"""
