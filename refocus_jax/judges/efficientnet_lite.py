"""EfficientNet-Lite: small ImageNet classifiers whose features serve for distances and the perceptual loss.

Tan and Le, "EfficientNet" (2019), in the Lite variant that TensorFlow published: no squeeze-and-excitation, ReLU6,
TensorFlow's SAME padding. Batch statistics are folded into the convolutions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
# The next larger network has more blocks of the same widths. With its own weights it is a second, separate judge
# (benchmarks/perceptual.py).
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


class DepthwiseConv(nn.Module):
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
        _, h, w, c = x_bhwc.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.kernel, self.kernel, 1, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        x, kernel, bias = (a.astype(self.dtype) for a in (x_bhwc, kernel, bias.reshape(1, 1, 1, c)))
        reach = [(n - 1) // self.strides * self.strides + 1 for n in (h, w)]  # of the first tap
        padding = [max(r + self.kernel - 1 - n, 0) for r, n in zip(reach, (h, w), strict=True)]
        x = jnp.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in padding), (0, 0)))
        return bias + sum(
            x[:, i:i + reach[0]:self.strides, j:j + reach[1]:self.strides] * kernel[i:i + 1, j:j + 1]
            for i in range(self.kernel) for j in range(self.kernel))


class Block(nn.Module):
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
        h = nn.relu6(DepthwiseConv(self.kernel, self.strides, self.dtype, name="depthwise")(h))
        h = conv(self.features, "project")(h)
        return x_bhwc + h if h.shape == x_bhwc.shape else h


class EfficientNetLite(nn.Module):
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
                x = Block(group.features, group.kernel, group.strides if i == 0 else 1, group.expansion, self.dtype,
                          self.precision, name=f"block_{number}")(x)
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
    return state_dict.parameters(EfficientNetLite(groups), arrays, sources, _NORM_EPSILON)
