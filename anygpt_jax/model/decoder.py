"""The decoder: LLaMA-2 (arXiv 2307.09288) in Flax Linen, layers stacked by a scan.

Letters of shapes: B batch, T positions, D embed_dim, N query heads, K key/value heads, H head_dim,
F hidden_dim, V vocab_size, S cache slots.

Every parameter and activation carries logical axis names; a config's rules map them to a mesh.
"""

import dataclasses
import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from anygpt_jax.model import attention, whole_heads
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.gathering import divided_halfway


@flax.struct.dataclass
class Cache:
    """Keys and values of the slots written so far, for incremental decoding.

    All rows of a batch write the same slots; shorter prompts are padded on the left with segment id 0.

    Attributes:
      keys, values: [layers, B, K, S, H] in the decoder's dtype, keys already rotated; or, for an unrolled
        decoder, tuples of one [B, K, S, H] per layer.
      segment_ids: int32 [B, S]; -1 marks a slot that is not written.
      next_position: int32 [B], the position of each row's next token.
      index: int32 scalar, the next slot to write.
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    segment_ids: jax.Array
    next_position: jax.Array
    index: jax.Array


def init_cache(config: DecoderConfig, batch: int, length: int, unrolled: bool = False) -> Cache:
    """An empty cache of `length` slots for `batch` rows, of a decoder that is `unrolled` or not."""

    def empty() -> jax.Array | tuple[jax.Array, ...]:
        shape = (batch, config.num_kv_heads, length, config.head_dim)
        if unrolled:
            return tuple(jnp.zeros(shape, config.dtype) for _ in range(config.num_layers))
        return jnp.zeros((config.num_layers, *shape), config.dtype)

    return Cache(
        keys=empty(),
        values=empty(),
        segment_ids=jnp.full((batch, length), -1, jnp.int32),
        next_position=jnp.zeros((batch,), jnp.int32),
        index=jnp.zeros((), jnp.int32),
    )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initializer = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", initializer, (x.shape[-1],), self.config.param_dtype)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.config.norm_eps)
        return (wide * inverse * scale.astype(jnp.float32)).astype(x.dtype)


@jax.custom_vjp
def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) · up. Its gradient keeps the two inputs only, where autodiff keeps and reads five arrays."""
    return jax.nn.silu(gate) * up


def _gated_backward(inputs, gradient):
    gate, up = inputs
    sigmoid = jax.nn.sigmoid(gate)
    silu = gate * sigmoid
    # Behind the barrier both are arrays. XLA:TPU would else compute them again inside each of the four
    # products that read them, which leaves too little vector memory for good tiles.
    return jax.lax.optimization_barrier((gradient * up * (sigmoid + silu * (1 - sigmoid)), gradient * silu))


gated.defvjp(lambda gate, up: (gated(gate, up), (gate, up)), _gated_backward)


class Projection(nn.Module):
    """A linear map without bias from the last `len(inputs)` axes to new axes `outputs`.

    Attributes:
      inputs, outputs: sizes of the kernel's axes. axes: their logical names, inputs first.
      scale: standard deviation of the initial kernel.
    """

    config: DecoderConfig
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        initializer = nn.with_logical_partitioning(nn.initializers.normal(self.scale), self.axes)
        shape = (*self.inputs, *self.outputs)
        kernel = self.param("kernel", initializer, shape, self.config.param_dtype).astype(x.dtype)
        kernel = divided_halfway(kernel, self.axes)
        # One product of two matrices: its gradients, too, are then plain products (much faster on a CPU).
        rows = x.shape[: x.ndim - len(self.inputs)]
        out = x.reshape(math.prod(rows), -1) @ kernel.reshape(math.prod(self.inputs), -1)
        return out.reshape(*rows, *self.outputs)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions.

    `stored` are a layer's keys and values in a cache, or None. With the result comes what is `written`: of an
    unrolled decoder both with the new slots, else the new slots alone, [B, K, T, H].
    """

    config: DecoderConfig
    unrolled: bool = False

    @nn.compact
    def __call__(self, x, stored, slot, rope, mask):
        c = self.config

        def heads(name: str, count: int, axis: str) -> jax.Array:
            axes = ("embed", axis, "head_dim")
            out = Projection(c, (c.embed_dim,), (count, c.head_dim), axes, c.embed_dim**-0.5, name=name)(x)
            return whole_heads.constrain(out, ("batch", "length", f"act_{axis}", "head_dim"))

        if self.unrolled:
            joined = heads("query_key_value", c.num_heads + 2 * c.num_kv_heads, "heads")
            query, key, value = jnp.split(joined, [c.num_heads, c.num_heads + c.num_kv_heads], axis=2)
        else:
            query = heads("query", c.num_heads, "heads")
            key = heads("key", c.num_kv_heads, "kv_heads")
            value = heads("value", c.num_kv_heads, "kv_heads")
        rotate = attention.apply_rope_by_product if c.attention == "splash" else attention.apply_rope
        query, key = rotate(query, rope), rotate(key, rope)
        if stored is None:
            written = None
            blocks = c.attention_blocks if x.shape[1] % c.attention_blocks == 0 else 1
            mixed = attention.self_attend(query, key, value, mask, c.attention, blocks)  # [B, T, N, H]
        elif self.unrolled:
            written = tuple(
                jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2), (0, 0, slot, 0))
                for old, new in zip(stored, (key, value), strict=True)
            )
            mixed = attention.attend(query, *(array.swapaxes(1, 2) for array in written), mask)
        else:
            written = key.swapaxes(1, 2), value.swapaxes(1, 2)
            mixed = attention.attend_beside_cache(query, *written, *stored, *mask)
        inputs, axes = (c.num_heads, c.head_dim), ("heads", "head_dim", "embed")
        out = Projection(c, inputs, (c.embed_dim,), axes, c.residual_scale(math.prod(inputs)), name="output")(
            mixed
        )
        return checkpoint_name(out, "output"), written


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (arXiv 2002.05202)."""

    config: DecoderConfig
    unrolled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = ((c.embed_dim,), (c.hidden_dim,)), ("embed", "mlp")
        if self.unrolled:
            both = Projection(c, shape[0], (2 * c.hidden_dim,), axes, c.embed_dim**-0.5, name="gate_up")(x)
            gate, up = jnp.split(both, 2, axis=-1)
        else:
            gate = checkpoint_name(Projection(c, *shape, axes, c.embed_dim**-0.5, name="gate")(x), "gate")
            up = checkpoint_name(Projection(c, *shape, axes, c.embed_dim**-0.5, name="up")(x), "up")
        hidden = nn.with_logical_constraint(gated(gate, up), ("batch", "length", "act_mlp"))
        down = Projection(c, *shape[::-1], axes[::-1], c.residual_scale(c.hidden_dim), name="down")
        return checkpoint_name(down(hidden), "down")


class Layer(nn.Module):
    """One pre-norm residual block as `nn.scan` wants it: (carry, layer's cache, …) → (carry, written)."""

    config: DecoderConfig
    unrolled: bool = False

    @nn.compact
    def __call__(self, x, stored, slot, rope, mask):
        x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))  # [B, T, D]
        mixed, written = Attention(self.config, self.unrolled, name="attention")(
            RMSNorm(self.config, name="attention_norm")(x), stored, slot, rope, mask
        )
        x = x + mixed
        x = x + MLP(self.config, self.unrolled, name="mlp")(RMSNorm(self.config, name="mlp_norm")(x))
        return x, written


def _rematerialised(policy: str) -> type[nn.Module]:
    """Layer under the named policy (DecoderConfig.remat_policy)."""
    if policy == "none":
        return Layer
    only = jax.checkpoint_policies.save_only_these_names
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "save_qkv": only("query", "key", "value"),
        "projections": only("query", "key", "value", "output"),
        "save_dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "products": only("query", "key", "value", "output", "gate", "up", "down"),
        "minimal": jax.checkpoint_policies.save_from_both_policies(
            only("query", "key", "value", "attention", "output", "gate", "up", "down"),
            attention.is_library_result,
        ),
    }
    return nn.remat(Layer, policy=policies[policy], prevent_cse=False)


class Decoder(nn.Module):
    """The whole language model over one vocabulary of text and media codes.

    Attributes:
      unrolled: the parameters are those of `unroll`, one module per layer. For decoding on a CPU: XLA:CPU
        copies a layer's slice of a stacked array, so that each token would copy all weights.
    """

    config: DecoderConfig
    unrolled: bool = False

    def setup(self):
        c = self.config
        table = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        self.embedding = self.param("embedding", table, (c.vocab_size, c.embed_dim), c.param_dtype)
        self.layers = self._separate() if self.unrolled else self._scanned()
        self.final_norm = RMSNorm(c)
        head = nn.with_logical_partitioning(nn.initializers.normal(c.embed_dim**-0.5), ("embed", "vocab"))
        self.unembedding = self.param("unembedding", head, (c.embed_dim, c.vocab_size), c.param_dtype)

    def _separate(self) -> list[nn.Module]:
        return [Layer(self.config, unrolled=True) for _ in range(self.config.num_layers)]

    def _scanned(self) -> nn.Module:
        c = self.config
        return nn.scan(
            _rematerialised(c.remat_policy),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            unroll=c.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs the layers.

        Args:
          tokens: int32 [B, T].
          positions: int32 [B, T] of the rotary embedding, below T or the cache's length; by default each row
            counts on from its cache, or from 0, over the tokens whose segment is not 0.
          segment_ids: int32 [B, T], by default all 1. A token reads only its own segment; 0 is padding.
          cache: where given, the T tokens are written to its next T slots (the caller sees to it that they
            exist) and read everything before them.
        Returns:
          hidden [B, T, D] after the final norm, for `logits` or the tiled loss; and the new cache, or None.
        """
        c = self.config
        segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        if positions is None:
            first = 0 if cache is None else cache.next_position[:, None]
            positions = jnp.maximum(first + jnp.cumsum(segment_ids > 0, axis=1, dtype=jnp.int32) - 1, 0)
        x = jnp.take(self.embedding, tokens, axis=0).astype(c.dtype)
        if divided := _divided_as_table():
            # Rows are exchanged, not the table: neither it nor its gradient is ever whole on a device.
            x = jax.lax.with_sharding_constraint(x, divided)
            x = nn.with_logical_constraint(x, ("batch", "length", "act_embed"))
        slot = 0 if cache is None else cache.index
        key_segments = segment_ids
        if cache is not None:
            key_segments = jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, slot))
        rope = attention.rope_tables(positions, key_segments.shape[1], c.head_dim, c.rope_theta)
        if cache is None:
            mask = attention.self_mask(segment_ids, c.attention)
        elif self.unrolled:
            mask = attention.mask_bias(segment_ids, key_segments, slot)
        else:
            own = attention.mask_bias(segment_ids, segment_ids, 0)
            mask = own, attention.mask_bias(segment_ids, cache.segment_ids, slot)
        x, keys_and_values = self._through_layers(x, cache, slot, rope, mask)
        if cache is not None:
            # A row that is all padding so far has still seen no position.
            next_position = jnp.where(segment_ids[:, -1] > 0, positions[:, -1] + 1, cache.next_position)
            cache = Cache(*keys_and_values, key_segments, next_position, slot + tokens.shape[1])
        return self.final_norm(x), cache

    def _through_layers(self, x, cache, slot, rope, mask):
        stored = None if cache is None else (cache.keys, cache.values)
        if not self.unrolled:
            # The layers only read the cache, and all of them are written at once: XLA:TPU else lays the cache
            # out for the writing, and copies each layer's part before it reads it.
            x, written = self.layers(x, stored, slot, rope, mask)
            if cache is None:
                return x, None
            start = (0, 0, 0, slot, 0)
            pairs = zip(stored, written, strict=True)
            return x, tuple(jax.lax.dynamic_update_slice(old, new, start) for old, new in pairs)
        written = []
        for number, layer in enumerate(self.layers):
            own = None if stored is None else tuple(arrays[number] for arrays in stored)
            x, own = layer(x, own, slot, rope, mask)
            written.append(own)
        return x, None if stored is None else tuple(zip(*written, strict=True))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., V] of hidden [..., D]; rows that pad the vocabulary are at MASKED."""
        c = self.config
        out = jnp.einsum(
            "...D,DV->...V", hidden, self.unembedding.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return jnp.where(jnp.arange(c.vocab_size) < c.num_real_rows, out, attention.MASKED)


def _divided_as_table() -> PartitionSpec | None:
    """How rows [B, T, D] come out of the input table on the mesh that is set, if the axes that divide the
    table's columns else divide the batch: every device has its columns of the rows of all of them."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    # Asked for one by one: of two that name the same mesh axis, the second would come out undivided.
    batch, columns = (_names(nn.logical_to_mesh_axes((axis,))[0]) for axis in ("batch", "embed"))
    if not set(batch) & set(columns):
        return None
    return PartitionSpec(tuple(axis for axis in batch if axis not in columns) or None, None, columns)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def unroll(params: Any, config: DecoderConfig) -> Any:
    """The parameters of an unrolled decoder: layer by layer, in the decoder's dtype. Kernels that read the
    same input are joined: fewer and larger products."""

    def one_layer(number: int) -> Any:
        layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])
        heads, mlp = dict(layer["attention"]), dict(layer["mlp"])
        parts = [heads.pop(name)["kernel"] for name in ("query", "key", "value")]
        heads["query_key_value"] = {"kernel": jnp.concatenate(parts, axis=1).astype(config.dtype)}
        heads["output"] = {"kernel": heads["output"]["kernel"].astype(config.dtype)}
        parts = [mlp.pop(name)["kernel"] for name in ("gate", "up")]
        mlp["gate_up"] = {"kernel": jnp.concatenate(parts, axis=1).astype(config.dtype)}
        mlp["down"] = {"kernel": mlp["down"]["kernel"].astype(config.dtype)}
        return layer | {"attention": heads, "mlp": mlp}

    others = {name: leaf for name, leaf in params.items() if name != "layers"}
    others["unembedding"] = others["unembedding"].astype(config.dtype)
    return others | {f"layers_{number}": one_layer(number) for number in range(config.num_layers)}


def init_params(config: DecoderConfig, seed: int) -> Any:
    """Fresh parameters, a plain nested dict. Wrapped in `jax.eval_shape` it costs nothing."""
    return nn.unbox(init_boxed_params(config, seed))


def init_boxed_params(config: DecoderConfig, seed: int) -> Any:
    """The same with each leaf boxed beside its logical axis names."""
    config = dataclasses.replace(config, attention="einsum")  # the kernels do not take one position
    return Decoder(config).init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"]
