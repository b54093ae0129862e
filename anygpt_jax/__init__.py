"""Any-to-any language models in JAX."""
