"""GroupNorm of the tokenizers' networks, over each view of a canvas."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.models import canvas as canvas_lib
from refocus_jax.models.canvas import Canvas

EPSILON = 1e-6


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(x_bhwc: jax.Array, scale_c: jax.Array, bias_c: jax.Array, groups: int,
               canvas: Canvas | None) -> jax.Array:
    """Normalizes over all pixels of a view and the channels of a group.

    The sums run over pixels first and over the channels of a group afterwards, and the result is one multiplication and
    one addition per value. The gradients have a rule of their own of the same form. Flax's module sums over both at
    once, which a CPU does slowly.

    Args:
      x_bhwc: The input, float32.
      scale_c: Factors on the normalized channels.
      bias_c: What is added to them.
      groups: Number of groups, a divisor of the channels.
      canvas: Where the views are, if there are several.

    Returns:
      The result, (b, h, w, c); 0 between views.
    """
    return _group_norm_forward(x_bhwc, scale_c, bias_c, groups, canvas)[0]


def _over_groups(values_nbvc: jax.Array, groups: int) -> jax.Array:
    """Replaces every channel by the mean of its group."""
    grouped = values_nbvc.reshape(*values_nbvc.shape[:-1], groups, -1)
    return jnp.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape).reshape(values_nbvc.shape)


def _group_norm_forward(x_bhwc, scale_c, bias_c, groups, canvas):
    mean, square = _over_groups(canvas_lib.means([x_bhwc, jnp.square(x_bhwc)], canvas), groups)
    inverse = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + EPSILON)
    factor = scale_c[None, None] * inverse
    result = canvas_lib.combine([x_bhwc], [factor], bias_c[None, None] - mean * factor, canvas)
    return result, (x_bhwc, scale_c, mean, inverse)


def _group_norm_backward(groups, canvas, saved, gradient_bhwc):
    x_bhwc, scale_c, mean, inverse = saved
    # The means of g and of g (x - mean) over the pixels, then those of scale times both over the channels of a group.
    plain, slope = canvas_lib.means([gradient_bhwc, gradient_bhwc * x_bhwc], canvas)
    slope = slope - mean * plain
    of_plain, of_slope = _over_groups(scale_c[None, None, None] * jnp.stack([plain, slope]), groups)
    of_slope = inverse * inverse * inverse * of_slope
    of_x = canvas_lib.combine([gradient_bhwc, x_bhwc], [scale_c[None, None] * inverse, -of_slope],
                              mean * of_slope - inverse * of_plain, canvas)
    pixels = canvas_lib.pixels(x_bhwc, canvas)
    return of_x, (pixels * inverse * slope).sum(axis=(0, 1)), (pixels * plain).sum(axis=(0, 1))


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class GroupNorm(nn.Module, kw_only=True):
    """GroupNorm in float32, see `group_norm`.

    Attributes:
      groups: Number of groups, a divisor of the channels.
    """

    groups: int

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Normalizes (b, h, w, c); the output is float32, and 0 between views."""
        scale = self.param("scale", nn.initializers.ones, (x_bhwc.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x_bhwc.shape[-1],))
        return group_norm(x_bhwc.astype(jnp.float32), scale, bias, self.groups, canvas)


class Norm(nn.Module, kw_only=True):
    """GroupNorm in float32, optionally followed by SiLU.

    Attributes:
      groups: Number of groups, a divisor of the channels.
      silu: Whether SiLU follows.
    """

    groups: int
    silu: bool = False

    @nn.compact
    def __call__(self, x_bhwc: jax.Array, canvas: Canvas | None = None) -> jax.Array:
        """Normalizes the input; the output has its shape and dtype."""
        if x_bhwc.shape[-1] % self.groups:
            raise ValueError(f"norm_groups {self.groups} does not divide {x_bhwc.shape[-1]} channels; "
                             "lower norm_groups or change channels")
        x_bhwc = GroupNorm(groups=self.groups, name="norm")(x_bhwc, canvas).astype(x_bhwc.dtype)
        return nn.silu(x_bhwc) if self.silu else x_bhwc
