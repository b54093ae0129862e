"""LSTM over long sequences: the input projections in one product, the recurrence unrolled, carries explicit.

Layout is time-major, [F, B, C]. Rows end where `valid` says so: their state stands still from there on, which
also lets the backward direction start at each row's own last frame.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST
UNROLL = 1

Carry = tuple[jax.Array, jax.Array]


class LstmDirection(nn.Module):
    """One layer in one direction. Gates are ordered input, forget, cell, output, as in PyTorch."""

    features: int

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array, carry: Carry | None = None, reverse: bool = False
    ) -> tuple[jax.Array, Carry]:
        """x [F, B, C], valid bool [F, B], carry (h, c) of [B, H] each -> (outputs [F, B, H], carry)."""
        init = nn.initializers.lecun_normal()
        input_kernel = self.param("input_kernel", init, (x.shape[-1], 4 * self.features))
        recurrent_kernel = self.param("recurrent_kernel", init, (self.features, 4 * self.features))
        bias = self.param("bias", nn.initializers.zeros, (4 * self.features,))
        projected = jnp.matmul(x, input_kernel, precision=HIGHEST) + bias
        if carry is None:
            carry = (jnp.zeros((x.shape[1], self.features), x.dtype),) * 2

        def step(carry: Carry, inputs: tuple[jax.Array, jax.Array]) -> tuple[Carry, jax.Array]:
            (h, c), (gates, valid) = carry, inputs
            gates = gates + jnp.matmul(h, recurrent_kernel, precision=HIGHEST)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            new_c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            new_h = nn.sigmoid(o) * jnp.tanh(new_c)
            carry = jnp.where(valid[:, None], new_h, h), jnp.where(valid[:, None], new_c, c)
            return carry, new_h

        carry, outputs = jax.lax.scan(step, carry, (projected, valid), reverse=reverse, unroll=UNROLL)
        return outputs, carry


class Lstm(nn.Module):
    """Layers of LSTM with a skip connection around all of them (repeated where there are two directions)."""

    features: int
    layers: int
    bidirectional: bool = False

    def setup(self):
        self.forward = [LstmDirection(self.features) for _ in range(self.layers)]
        self.backward = [
            LstmDirection(self.features) for _ in range(self.layers if self.bidirectional else 0)
        ]

    def __call__(
        self, x: jax.Array, valid: jax.Array, carries: list[Carry] | None = None
    ) -> tuple[jax.Array, list[Carry]]:
        """x [F, B, H] -> (outputs [F, B, H or 2·H], the forward direction's carry of every layer)."""
        y, after = x, []
        for i in range(self.layers):
            forward, carry = self.forward[i](y, valid, carries[i] if carries else None)
            after.append(carry)
            y = (
                jnp.concatenate([forward, self.backward[i](y, valid, reverse=True)[0]], -1)
                if self.bidirectional
                else forward
            )
        return self.skip(x, y), after

    def direction(
        self, layer: int, reverse: bool, x: jax.Array, valid: jax.Array, carry: Carry
    ) -> tuple[jax.Array, Carry]:
        """One layer in one direction on a piece of the sequence: for long input, piece by piece."""
        return (self.backward if reverse else self.forward)[layer](x, valid, carry, reverse)

    def skip(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Adds the input x to the last layer's outputs y."""
        return y + (jnp.concatenate([x, x], -1) if self.bidirectional else x)
