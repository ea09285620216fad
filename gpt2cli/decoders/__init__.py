"""Token ids to logits, with memory: one protocol; NumPy, C++ and PyTorch behind it."""
