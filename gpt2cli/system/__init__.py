"""The machine: its devices, its memory, and what a model needs of them."""
