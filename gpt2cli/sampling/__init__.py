"""Logits to a token: rules, penalties, constraints, and their order."""
