"""How the codes of a codebook that is being learnt are used, and moving those that are not.

Codes that no latent is near to get no gradient and stay where they are: a codebook collapses. A code that was
idle for so many steps is put onto a latent of the batch, from where it takes part again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

UNUSED = 0.01  # a code is called dead below this share of what it would get if all were used alike


class CodeUse(NamedTuple):
    """What is remembered of N codes.

    usage float32 [N]: moving shares of the latents that each got. idle int32 [N]: steps since it last got any
    or was moved. moved bool [N], moves float32 [N, D]: which codes go where after this step; () if none ever.
    """

    usage: jax.Array
    idle: jax.Array
    moved: Any = ()
    moves: Any = ()


def init_code_use(size: int, dim: int | None = None) -> CodeUse:
    """Nothing seen yet of `size` codes. `dim`: of codes that can be moved."""
    use = CodeUse(jnp.zeros(size), jnp.zeros(size, jnp.int32))
    if dim is None:
        return use
    return use._replace(moved=jnp.zeros(size, bool), moves=jnp.zeros((size, dim)))


def update_code_use(
    use: CodeUse, codes: jax.Array, latents: jax.Array, rng: jax.Array, decay: float, restart_after: int
) -> tuple[CodeUse, dict[str, jax.Array]]:
    """(the account after a batch, figures about it).

    Args:
      codes: int32 [...]; latents: float32 [..., D], what they were chosen for.
      decay: of the moving shares.
      restart_after: steps without use after which a code is moved onto a random latent; unused if `use` was
        made for codes that aren't moved.

    Figures: "code_entropy_bits" (of the moving shares), "codes_in_batch", "dead_codes", "moved_codes".
    """
    size = len(use.usage)
    counts = jnp.zeros(size).at[codes.reshape(-1)].add(1.0)
    usage = decay * use.usage + (1 - decay) * counts / codes.size
    idle = jnp.where(counts > 0, 0, use.idle + 1)
    share = usage / usage.sum()
    figures = {
        "code_entropy_bits": -jnp.sum(share * jnp.log2(share + 1e-20)),
        "codes_in_batch": jnp.sum(counts > 0),
        "dead_codes": jnp.sum(share < UNUSED / size),
    }
    use = use._replace(usage=usage, idle=idle)
    if isinstance(use.moved, tuple):
        return use, figures
    rows = latents.reshape(-1, latents.shape[-1])
    moved = idle >= restart_after
    moves = rows[jax.random.randint(rng, (size,), 0, len(rows))]
    figures["moved_codes"] = jnp.sum(moved)
    return CodeUse(usage, jnp.where(moved, 0, idle), moved, moves), figures


def moved_codebook(use: CodeUse, codebook: jax.Array) -> jax.Array:
    """The codebook [N, D] after its idle codes were moved."""
    if isinstance(use.moved, tuple):
        return codebook
    return jnp.where(use.moved[:, None], use.moves, codebook)
