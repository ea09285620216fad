"""What a model thinks of a text: scores, rankings, comparisons, its insides, its speed."""
