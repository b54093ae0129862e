"""Codecs: media in, discrete codes out, and back. Never imports anygpt_jax."""
