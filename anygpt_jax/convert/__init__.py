"""Weights in and out: Hugging Face LLaMA directories ⇄ the project's own checkpoints, one tensor at a time.

`import_hf`, `export_hf` and `grow` are what `python -m anygpt_jax.convert` calls.
"""

from anygpt_jax.convert.exporting import export_hf
from anygpt_jax.convert.importing import grow, import_hf

__all__ = ["export_hf", "grow", "import_hf"]
