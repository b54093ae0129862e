"""Convolutions whose gradients are fast on a CPU as well: the same sums, put to XLA in another form.

XLA:CPU hands plain convolutions to a fast library. A gradient of a grouped one, and one by the input of a
strided one, is not plain: the first runs as nested loops, the second multiplies by the zeros between strides.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

HIGHEST = jax.lax.Precision.HIGHEST
FEW_CHANNELS = 128  # up to which multiplying by the zeros of other groups costs less than nested loops


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """Convolution of x [B, ..., C] with kernel [..., C / groups, F] in one or two dimensions.

    `padding` is that of either side. In float32 at the highest matmul precision.
    """
    dilation = tuple(dilation or (1,) * len(stride))
    padding = [(side, side) for side in padding]

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        divided = 1 if x.shape[-1] <= FEW_CHANNELS else groups
        kernel = kernel if divided == groups else ungrouped(kernel, groups)
        if divided == 1 and any(step > 1 for step in stride):
            x, kernel = folded(x, kernel, stride, padding, dilation)
            return _convolve(x, kernel, (1,) * len(stride), [(0, 0)] * len(stride), dilation, 1)
        return _convolve(x, kernel, stride, padding, dilation, divided)

    def elsewhere(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _convolve(x, kernel, stride, padding, dilation, groups)

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution of x [B, T, C] with kernel [taps, 1, C], each channel by itself, as long as x.

    On a CPU a sum of shifted products: a convolution in groups is slow there, and inside a loop slower.
    """
    taps = kernel.shape[0]
    padding = (taps // 2, (taps - 1) // 2)

    def on_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
        length = x.shape[1]
        x = jnp.pad(x, ((0, 0), padding, (0, 0)))
        return sum(x[:, tap : tap + length] * kernel[tap] for tap in range(taps))

    def elsewhere(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _convolve(x, kernel, (1,), [padding], (1,), x.shape[-1])

    return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)


def _convolve(x, kernel, stride, padding, dilation, groups) -> jax.Array:
    space = "HW"[: len(stride)]
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
        precision=HIGHEST,
    )


def ungrouped(kernel: jax.Array, groups: int) -> jax.Array:
    """A grouped kernel [..., C / groups, F] as one of all channels [..., C, F], with zeros between groups."""
    *shape, channels, features = kernel.shape
    parts = kernel.reshape(*shape, 1, channels, groups, features // groups)
    own = jnp.eye(groups, dtype=bool)[:, None, :, None]
    return jnp.where(own, parts, 0).reshape(*shape, groups * channels, features)


def folded(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
    """Input and kernel of the convolution without stride and padding that computes the same.

    The samples of a stride become channels: [B, T, C] -> [B, T / stride, stride · C]. An axis that has a
    stride must have no dilation.
    """
    for axis, (step, (before, after), spread) in enumerate(zip(stride, padding, dilation, strict=True)):
        size, taps = x.shape[axis + 1], kernel.shape[axis]
        if step == 1:
            x = _pad(x, axis + 1, before, after)
            continue
        if spread != 1:
            raise ValueError(f"axis {axis} has the stride {step} and the dilation {spread}")
        count = (before + size + after - taps) // step + 1
        blocks = -(-taps // step)
        length = (count - 1 + blocks) * step
        x = _strides_to_channels(_pad(x, axis + 1, before, length - before - size), axis + 1, -1, step)
        kernel = _strides_to_channels(_pad(kernel, axis, 0, blocks * step - taps), axis, -2, step)
    return x, kernel


def _pad(array: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Zeros around an axis; less than none cuts it."""
    widths = [(0, 0, 0)] * array.ndim
    widths[axis] = before, after, 0
    return jax.lax.pad(array, jnp.zeros((), array.dtype), widths)


def _strides_to_channels(array: jax.Array, axis: int, channels: int, step: int) -> jax.Array:
    """Every `step` neighbours along `axis` as one, with `step` times the channels (an axis from behind)."""
    shape = list(array.shape)
    shape[axis : axis + 1] = [shape[axis] // step, step]
    array = jnp.moveaxis(array.reshape(shape), axis + 1, channels - 1)
    shape = list(array.shape)
    shape[channels - 1 :] = [shape[channels - 1] * shape[channels], *shape[channels:][1:]]
    return array.reshape(shape)
