"""Many prompts at once: a file of them completed, row by row, so that nothing is lost."""
