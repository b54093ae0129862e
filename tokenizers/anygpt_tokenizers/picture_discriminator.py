"""StyleGAN2's discriminator of pictures (Karras et al. 2020, arXiv 1912.04958), with blurred pooling.

As MaskGIT has it for its tokenizer: residual blocks that halve the picture down to 4 × 4, no minibatch
statistics, no equalised learning rate. Layout is channels-last.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

WIDEST = 512
SMALLEST = 4  # pixels along the side of what the last layers see
HIGHEST = jax.lax.Precision.HIGHEST


class Discriminator(nn.Module):
    """Pixels to one logit a picture, large for real ones.

    Attributes:
      multiplier: of the width where the picture is larger than 32 pixels: 64 · multiplier at 256.
      shrink: what all widths are divided by.
    """

    multiplier: float = 1.0
    shrink: int = 1

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """float32 [B, S, S, 3], S a power of two from 8 -> float32 [B]."""
        size = pixels.shape[1]
        x = nn.leaky_relu(_conv(self._width(size), 3)(pixels), 0.2)
        while size > SMALLEST:
            size //= 2
            x = self._halved(x, self._width(size))
        x = nn.leaky_relu(_conv(self._width(size), 3)(x), 0.2)
        x = nn.leaky_relu(_dense(self._width(size))(x.reshape(len(x), -1)), 0.2)
        return _dense(1)(x)[:, 0]

    def _halved(self, x: jax.Array, width: int) -> jax.Array:
        """A residual block: [B, H, W, C] -> [B, H/2, W/2, width]."""
        h = nn.leaky_relu(_conv(x.shape[-1], 3)(x), 0.2)
        h = nn.leaky_relu(_conv(width, 3)(blur_pool(h)), 0.2)
        return (_conv(width, 1, bias=False)(blur_pool(x)) + h) / math.sqrt(2)

    def _width(self, size: int) -> int:
        wide = WIDEST if size <= 32 else 16384 * self.multiplier / size
        return max(1, int(min(wide, WIDEST)) // self.shrink)


def _conv(features: int, kernel: int, bias: bool = True) -> nn.Conv:
    return nn.Conv(features, (kernel, kernel), use_bias=bias, kernel_init=nn.initializers.xavier_uniform())


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform())


def blur_pool(x: jax.Array) -> jax.Array:
    """Blurred by 1, 3, 3, 1 both ways, then every second (Zhang 2019): [B, H, W, C] -> [B, H/2, W/2, C]."""
    channels = x.shape[-1]
    row = np.array([1, 3, 3, 1], np.float32) / 8
    kernel = np.tile(np.outer(row, row)[..., None, None], (1, 1, 1, channels))
    return jax.lax.conv_general_dilated(
        x,
        jnp.asarray(kernel, x.dtype),
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=HIGHEST,
    )
