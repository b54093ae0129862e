"""Captions for SEED's first stage: tokens, and the Q-Former's BERT reading them.

As in BLIP-2 (Li et al. 2023), text goes through the layers that the queries go through: self-attention, its
norms and the norm of the embeddings are the same parameters; the feed-forward layers and the embeddings are
text's own. All tokens see each other, pictures are not attended to, and the first token stands for the text.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.seed_layers import in_turn, norm
from anygpt_tokenizers.seed_qformer import EPSILON, MASKED, QFormerLayer

PAD, FIRST, SPECIAL = 0, 1, 2  # the number of a token of the text is SPECIAL more than its tokenizer's
Params = dict


class Captions:
    """Texts to rows of tokens: FIRST, then UTF-8 bytes or the pieces of a SentencePiece model, then PAD.

    The original has BERT's 30,522 word pieces, of which no file comes with this package.

    Attributes:
      vocab_size: rows that an embedding of the tokens has.
    """

    def __init__(self, max_tokens: int, model: str | os.PathLike = ""):
        """`max_tokens` includes FIRST; `model` is a SentencePiece file, or empty for bytes."""
        self._max_tokens = max_tokens
        self._pieces: Callable[[str], Sequence[int]] = lambda text: text.encode()
        self.vocab_size = 256 + SPECIAL
        if model:
            if not Path(model).is_file():
                raise UserError(f"There is no SentencePiece model {model} (config.text.model).")
            try:
                pieces = sentencepiece.SentencePieceProcessor(model_proto=Path(model).read_bytes())
            except RuntimeError as error:
                raise UserError(f"{model} (config.text.model) is no SentencePiece model.") from error
            self._pieces = pieces.encode
            self.vocab_size = pieces.vocab_size() + SPECIAL

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [len(texts), max_tokens]; longer texts are cut. UserError for text that UTF-8 cannot hold."""
        rows = np.full((len(texts), self._max_tokens), PAD, np.int32)
        rows[:, 0] = FIRST
        for row, text in zip(rows, texts, strict=True):
            try:
                pieces = list(self._pieces(text))[: self._max_tokens - 1]
            except (UnicodeEncodeError, RuntimeError) as error:  # of str and of SentencePiece
                raise UserError(f"{text[:60]!a} has half a surrogate pair; decode it again.") from error
            row[1 : 1 + len(pieces)] = np.asarray(pieces, np.int32) + SPECIAL
        return rows


class TextLayer(QFormerLayer):
    """The Q-Former's layer for text: self-attention and a feed-forward layer."""

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """float32 [B, T, D], and what is added to scores [B, 1, 1, T] -> float32 [B, T, D]."""
        return self._feed_forward(self._attend("self", x, x, mask))


class TextLayerPair(nn.Module):
    """Two layers, under the names that the Q-Former's have."""

    num_heads: int
    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        for name in ("cross", "plain"):
            x = TextLayer(self.num_heads, self.hidden_dim, False, self.dtype, name=name)(x, mask)
        return x, None


class TextReader(nn.Module):
    """Tokens to one vector; the attributes but for `vocab_size` are those of `CausalQFormer`."""

    vocab_size: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T], FIRST at the beginning -> float32 [B, dim]."""
        normal = nn.initializers.normal(0.02)
        table = self.param("tokens", normal, (self.vocab_size, self.dim))
        places = self.param("places", normal, (tokens.shape[1], self.dim))
        x = norm("queries_norm", EPSILON)(table[tokens] + places)
        mask = jnp.where(tokens == PAD, MASKED, 0.0)[:, None, None, :]
        settings = self.num_heads, self.hidden_dim, self.dtype
        return in_turn(self, "pairs", TextLayerPair, settings, self.num_layers // 2, x, mask)[:, 0]


def own_params(params: Params) -> Params:
    """Of all parameters of a `TextReader`, those that are not the Q-Former's too."""
    pairs = {
        kind: {name: value for name, value in layer.items() if not name.startswith("self_")}
        for kind, layer in params["pairs"].items()
    }
    return {"tokens": params["tokens"], "places": params["places"], "pairs": pairs}


def with_shared(own: Params, qformer: Params) -> Params:
    """All parameters of a `TextReader`: its own and those that it shares with the Q-Former."""
    pairs = {
        kind: {**layer, **{n: v for n, v in qformer["pairs"][kind].items() if n.startswith("self_")}}
        for kind, layer in own["pairs"].items()
    }
    return {**own, "pairs": pairs, "queries_norm": qformer["queries_norm"]}


def with_feed_forward_of(own: Params, qformer: Params) -> Params:
    """Text's own parameters, its feed-forward layers copied from the queries'.

    The original starts from BLIP-2 and copies the other way, text's to the queries'.
    """
    pairs = {
        kind: {name: jax.tree.map(jnp.array, qformer["pairs"][kind][name]) for name in layer}
        for kind, layer in own["pairs"].items()
    }
    return {**own, "pairs": pairs}
