"""SEED's causal Q-Former (Ge et al. 2023): 32 learnt queries, each seeing those before it, read a picture.

BLIP-2's Q-Former otherwise: BERT with post-norm layers and without text; every other layer, the first
included, attends to the picture as well.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from anygpt_tokenizers.attention import attention
from anygpt_tokenizers.seed_layers import dense, heads, in_turn, norm

EPSILON = 1e-12
MASKED = -10000.0  # added to the score of a later query, as BERT does


class QFormerLayer(nn.Module):
    """Attention among the queries, perhaps attention to the picture, mlp; a norm after each."""

    num_heads: int
    hidden_dim: int
    cross: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, picture: jax.Array) -> jax.Array:
        """Queries float32 [B, N, D], picture [B, M, D'] -> queries."""
        earlier = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        x = self._attend("self", x, x, jnp.where(earlier, 0.0, MASKED))
        if self.cross:
            x = self._attend("cross", x, picture, None)
        return self._feed_forward(x)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(dense(self.hidden_dim, "up", self.dtype)(x), approximate=False)
        return norm("norm", EPSILON)(x + dense(x.shape[-1], "down", self.dtype)(hidden))

    def _attend(self, kind: str, x: jax.Array, source: jax.Array, mask: jax.Array | None) -> jax.Array:
        dim = x.shape[-1]
        parts = [
            heads(dense(dim, f"{kind}_{name}", self.dtype)(given), self.num_heads)
            for name, given in (("query", x), ("key", source), ("value", source))
        ]
        mixed = dense(dim, f"{kind}_out", self.dtype)(attention(*parts, mask))
        return norm(f"{kind}_norm", EPSILON)(x + mixed)


class LayerPair(nn.Module):
    """A layer that attends to the picture and one that does not."""

    num_heads: int
    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, picture: jax.Array) -> tuple[jax.Array, None]:
        for name in ("cross", "plain"):
            layer = QFormerLayer(self.num_heads, self.hidden_dim, name == "cross", self.dtype, name=name)
            x = layer(x, picture)
        return x, None


class CausalQFormer(nn.Module):
    """Features, of a picture for example, to one vector per query.

    Attributes:
      num_queries, dim, num_layers (even), num_heads, hidden_dim: of the transformer.
      dtype: of the matrix products.
    """

    num_queries: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, picture: jax.Array) -> jax.Array:
        """Features float32 [B, M, D'] -> float32 [B, num_queries, dim]."""
        queries = self.param("queries", nn.initializers.normal(0.02), (self.num_queries, self.dim))
        x = jnp.broadcast_to(norm("queries_norm", EPSILON)(queries), (len(picture), *queries.shape))
        picture = picture.astype(self.dtype)
        settings = self.num_heads, self.hidden_dim, self.dtype
        return in_turn(self, "pairs", LayerPair, settings, self.num_layers // 2, x, picture)
