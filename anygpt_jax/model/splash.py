"""Splash attention: a TPU's flash attention (arXiv 2205.14135), from JAX's own Pallas ops."""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

# Lanes of a TPU's vector registers: head_dim and lengths are multiples of it.
_LANES = 128
_BLOCK = 512


def takes(head_dim: int, length: int) -> bool:
    """Whether the kernel can be used."""
    return head_dim % _LANES == 0 and length % _LANES == 0


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """Causal attention within segments; scores never reach the memory.

    Where a mesh is set, rows and heads are divided as the rules of the logical axes say; every device runs
    the kernel on its own.

    Args:
      query: [B, T, K·G, H]; key, value: [B, T, K, H]; segment_ids: int32 [B, T].
      interpret: runs the kernel's program without a TPU, slowly.
    Returns:
      [B, T, K·G, H].
    """

    def local(query, key, value, segment_ids):
        kernel = _kernel(query.shape[2], query.shape[1], interpret)
        heads_first = [a.transpose(0, 2, 1, 3) for a in (query * query.shape[-1] ** -0.5, key, value)]
        heads_first = named_for_remat(*heads_first)
        segments = splash_attention.SegmentIds(segment_ids, segment_ids)
        return jax.vmap(kernel)(*heads_first, segments).transpose(0, 2, 1, 3)

    if jax.sharding.get_abstract_mesh().empty:
        return local(query, key, value, segment_ids)

    def spec(*axes: str) -> PartitionSpec:
        return nn.logical_to_mesh_axes(axes)

    queries = spec("batch", "length", "act_heads", "head_dim")
    keys = spec("batch", "length", "act_kv_heads", "head_dim")
    specs = (queries, keys, keys, spec("batch", "length"))
    return jax.shard_map(local, in_specs=specs, out_specs=queries, check_vma=False)(
        query, key, value, segment_ids
    )


def named_for_remat(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, ...]:
    """The three, under the names by which a remat policy saves them: rotated, as attention's own backward
    pass reads them, so that nothing between them and their products is computed again."""
    arrays = {"query": query, "key": key, "value": value}
    return tuple(checkpoint_name(array, name) for name, array in arrays.items())


def _kernel(heads: int, length: int, interpret: bool) -> splash_attention.splash_attention_kernel:
    block = max(size for size in range(_LANES, _BLOCK + 1, _LANES) if length % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    return splash_attention.make_splash_mha(
        mask,
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
