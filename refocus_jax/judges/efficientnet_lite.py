"""EfficientNet-Lite: small ImageNet classifiers whose features serve for distances and the perceptual loss.

Tan and Le, "EfficientNet" (2019), in the Lite variant that TensorFlow published: no squeeze-and-excitation, ReLU6,
TensorFlow's SAME padding. Batch statistics are folded into the convolutions.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.judges import state_dict

IMAGE_SIZE = 224  # side of the images that the network was trained on
_NORM_EPSILON = 1e-3


class Group(NamedTuple):
    """Blocks of the same width; the first one has the strides."""

    blocks: int
    kernel: int
    strides: int
    expansion: int
    features: int


LITE0 = (Group(1, 3, 1, 1, 16), Group(2, 3, 2, 6, 24), Group(2, 5, 2, 6, 40), Group(3, 3, 2, 6, 80),
         Group(3, 5, 1, 6, 112), Group(4, 5, 2, 6, 192), Group(1, 3, 1, 6, 320))
# The next larger network has more blocks of the same widths. With its own weights it is a second, separate judge.
LITE1 = tuple(group._replace(blocks=group.blocks + (group.blocks > 1)) for group in LITE0)
_STEM, _HEAD = 32, 1280
NUM_CLASSES = 1000


def resize(pixels_bhwc: jax.Array, side: int = IMAGE_SIZE) -> jax.Array:
    """Resize bicubically like Pillow's BICUBIC, but without rounding to 8 bits.

    The kernel is Keys' with a = -1/2, anti-aliased when it shrinks the image.

    Args:
      pixels_bhwc: Images (b, h, w, 3) in [0, 255].
      side: Side of the result in pixels.

    Returns:
      Images (b, side, side, 3) in [0, 255].
    """
    b, h, _, c = pixels_bhwc.shape
    # Pillow also clips after each of the two passes.
    across = jnp.clip(jax.image.resize(pixels_bhwc, (b, h, side, c), "cubic"), 0, 255)
    return jnp.clip(jax.image.resize(across, (b, side, side, c), "cubic"), 0, 255)


class DepthwiseConv(nn.Module, kw_only=True):
    """A convolution of every channel separately, with a bias and TensorFlow's SAME padding.

    It is computed as a sum of shifted products, which XLA fuses: on CPUs, a convolution with one group per channel
    takes 3 to 20 times as long.
    """

    kernel: int
    strides: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Filter features (b, h, w, c) to (b, h / strides, w / strides, c), rounded up."""
        c = x_bhwc.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel, self.kernel, 1, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x_bhwc, kernel, bias.reshape(1, 1, 1, c)))
        return bias + _filter(x, kernel, self.strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _filter(x_bhwc: jax.Array, kernel_kk1c: jax.Array, strides: int) -> jax.Array:
    """Filter each channel by its own kernel.

    It has its own rule for gradients, a sum of shifted products as well. The one that JAX derives reads every value
    behind a condition, which is slow on a CPU.
    """
    k, taps = len(kernel_kk1c), _taps(x_bhwc, kernel_kk1c, strides)
    return cast(jax.Array, sum(taps[i, j] * kernel_kk1c[i:i + 1, j:j + 1] for i in range(k) for j in range(k)))


def _taps(x_bhwc, kernel_kk1c, strides: int) -> dict[tuple[int, int], jax.Array]:
    """Return the values that each tap of the kernel reads, (b, h / strides, w / strides, c), by row and column."""
    k, (h, w) = len(kernel_kk1c), x_bhwc.shape[1:3]
    padding = [_padding(n, k, strides) for n in (h, w)]
    x = jnp.pad(x_bhwc, ((0, 0), *padding, (0, 0)))
    reach = [(n - 1) // strides * strides + 1 for n in (h, w)]  # of a tap
    return {(i, j): x[:, i:i + reach[0]:strides, j:j + reach[1]:strides] for i in range(k) for j in range(k)}


def _padding(side: int, kernel: int, strides: int) -> tuple[int, int]:
    total = max((side - 1) // strides * strides + kernel - side, 0)
    return total // 2, total - total // 2


def _filter_forward(x_bhwc, kernel_kk1c, strides):
    return _filter(x_bhwc, kernel_kk1c, strides), (x_bhwc, kernel_kk1c)


def _filter_backward(strides, saved, gradient_bhwc):
    """Return the gradients of the input and of the kernel.

    The padded input at row `strides m + a` has met the taps `strides i + a` of the outputs m - i, and likewise the
    columns. So the gradient is computed for each pair of remainders (a, b), and these are interleaved.
    """
    x, kernel = saved
    k, reach = len(kernel), (len(kernel) - 1) // strides
    h, w = (n + reach for n in gradient_bhwc.shape[1:3])
    g = jax.lax.optimization_barrier(jnp.pad(gradient_bhwc, ((0, 0), (reach, reach), (reach, reach), (0, 0))))

    def remainder(a, b):
        return sum(g[:, reach - i // strides:reach - i // strides + h, reach - j // strides:reach - j // strides + w]
                   * kernel[i:i + 1, j:j + 1] for i in range(a, k, strides) for j in range(b, k, strides))

    rows = [jnp.stack([remainder(a, b) for b in range(strides)], axis=3) for a in range(strides)]
    padded = jnp.stack(rows, axis=2).reshape(len(g), strides * h, strides * w, -1)
    (top, _), (left, _) = (_padding(n, k, strides) for n in x.shape[1:3])
    missing = [max(start + n - m, 0) for start, n, m in zip((top, left), x.shape[1:3], padded.shape[1:3], strict=True)]
    padded = jnp.pad(padded, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))  # what no tap has read
    taps = _taps(x, kernel, strides)
    of_kernel = jnp.stack([(taps[i, j] * gradient_bhwc).sum(axis=(0, 1, 2)) for i in range(k) for j in range(k)])
    return padded[:, top:top + x.shape[1], left:left + x.shape[2]], of_kernel.reshape(kernel.shape)


_filter.defvjp(_filter_forward, _filter_backward)


class Block(nn.Module, kw_only=True):
    """An inverted residual block: a 1x1 convolution expands, a filter acts per channel, a 1x1 convolution projects."""

    features: int
    kernel: int
    strides: int
    expansion: int
    dtype: jnp.dtype
    precision: jax.lax.Precision | None

    @nn.compact
    def __call__(self, x_bhwc: jax.Array) -> jax.Array:
        """Map features (b, h, w, c) to (b, h / strides, w / strides, features)."""
        def conv(features, name):
            return nn.Conv(features, (1, 1), dtype=self.dtype, precision=self.precision, name=name)

        h = x_bhwc
        if self.expansion > 1:
            h = nn.relu6(conv(x_bhwc.shape[-1] * self.expansion, "expand")(h))
        h = nn.relu6(DepthwiseConv(kernel=self.kernel, strides=self.strides, dtype=self.dtype, name="depthwise")(h))
        h = conv(self.features, "project")(h)
        return x_bhwc + h if h.shape == x_bhwc.shape else h


class EfficientNetLite(nn.Module, kw_only=True):
    """The network, from pixels (b, h, w, 3) in [0, 255] to pooled features (b, 1280) and ImageNet logits (b, 1000)."""

    groups: tuple[Group, ...] = LITE0
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.Precision | None = None

    def setup(self):
        """Create the layers after the blocks."""
        self.head = nn.Conv(_HEAD, (1, 1), dtype=self.dtype, precision=self.precision)
        self.classifier = nn.Dense(NUM_CLASSES, precision=self.precision)

    @nn.compact
    def stages(self, pixels_bhwc: jax.Array) -> list[jax.Array]:
        """Return the last features at 1/2 to 1/32 of the size: (b, h / 2, w / 2, 16) ... (b, h / 32, w / 32, 320)."""
        x = nn.Conv(_STEM, (3, 3), (2, 2), dtype=self.dtype, precision=self.precision, name="stem")(
            (pixels_bhwc - 127) / 128)
        x, found, number = nn.relu6(x), [], 0
        for group in self.groups:
            if group.strides > 1:
                found.append(x)
            for i in range(group.blocks):
                x = Block(features=group.features, kernel=group.kernel, strides=group.strides if i == 0 else 1,
                          expansion=group.expansion, dtype=self.dtype, precision=self.precision,
                          name=f"block_{number}")(x)
                number += 1
        return [*found, x]

    def __call__(self, pixels_bhwc: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return pooled features (b, 1280) and logits (b, 1000), float32."""
        x = nn.relu6(self.head(self.stages(pixels_bhwc)[-1]))
        pool = x.astype(jnp.float32).mean(axis=(1, 2))
        return pool, self.classifier(pool)


def from_state_dict(arrays: Mapping[str, np.ndarray], groups: tuple[Group, ...] = LITE0) -> dict[str, Any]:
    """Convert the arrays of PyTorch's `efficientnet-lite0` files, or of another size, to parameters.

    Args:
      arrays: The arrays by name.
      groups: The groups of blocks that define the size.

    Returns:
      The tree of parameters.

    Raises:
      ValueError: If arrays are missing or have another shape; the message lists all of them.
    """
    sources: dict[tuple[str, ...], state_dict.Source] = {
        ("stem",): state_dict.Source("_conv_stem", "_bn0"), ("head",): state_dict.Source("_conv_head", "_bn1"),
        ("classifier",): state_dict.Source("_fc")}
    for number in range(sum(group.blocks for group in groups)):
        for i, name in enumerate(("expand", "depthwise", "project")):
            if (number, name) != (0, "expand"):  # the first block does not expand
                block = f"_blocks.{number}"
                sources[f"block_{number}", name] = state_dict.Source(f"{block}._{name}_conv", f"{block}._bn{i}")
    return state_dict.parameters(EfficientNetLite(groups=groups), arrays, sources, _NORM_EPSILON)
