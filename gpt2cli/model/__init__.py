"""The network in PyTorch: the reference that every decoder is compared with."""
