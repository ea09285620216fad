"""Texts written once more: records of what was written, and where what comes now differs."""
