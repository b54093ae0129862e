"""Text prompts for the unCLIP decoder, by the text encoder that lies beside its weights."""

import functools
import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import traverse_util

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_bpe import ClipBpe
from anygpt_tokenizers.clip_text import ClipText, TextSpec
from anygpt_tokenizers.unclip_spec import open_directory

TOKENIZER_FILES = ("vocab.json", "merges.txt")


def embed_prompts(directory: str | os.PathLike, prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> float32 [len(prompts), T, E], what `UnclipDecoder.decode` takes as `prompt_embeddings`.

    Reads the text encoder (1.4 GB at the published size) from the directory that `import-unclip` wrote, and
    keeps nothing of it. UserError if the directory holds no decoder or no tokenizer.
    """
    if isinstance(prompts, str) or not prompts:
        raise UserError("Prompts are a list with at least one text.")
    config, spec, weights = open_directory(directory)
    begin, end, pad = config["empty_prompt_tokens"][:3]
    tokens = ClipBpe.from_files(directory, begin, end, pad, spec.text.positions)(prompts)
    names = [name for name in weights if name.startswith("text/")]
    arrays = {name.removeprefix("text/"): np.asarray(weights[name], np.float32) for name in names}
    return np.asarray(_encoder(spec.text)(traverse_util.unflatten_dict(arrays, sep="/"), tokens))


@functools.cache
def _encoder(spec: TextSpec):
    return jax.jit(lambda params, tokens: ClipText(spec).apply({"params": params}, tokens))
