"""From files to batches: manifest, tokens, packed records, Grain."""
