"""Sampling: the grammar of an answer, the jitted loop, and requests from media to media."""
