"""VGG-16 without its classifier (Simonyan and Zisserman, 2014), for the features of a perceptual loss."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.judges import state_dict

GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
MIN_IMAGE_SIZE = 2 ** (len(GROUPS) - 1)
# Mean and standard deviation of ImageNet's RGB values in [0, 1].
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Vgg16(nn.Module, kw_only=True):
    """The network, from pixels (b, h, w, 3) in [0, 255] to the features before every pooling and at the end."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def stages(self, pixels_bhwc: jax.Array) -> list[jax.Array]:
        """Return features after ReLU: (b, h, w, 64), (b, h / 2, w / 2, 128) ... (b, h / 16, w / 16, 512)."""
        mean, std = (jnp.asarray(values).reshape(1, 1, 1, 3) for values in (_MEAN, _STD))
        x, found = (pixels_bhwc / 255 - mean) / std, []
        for group, widths in enumerate(GROUPS):
            if group:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i, width in enumerate(widths):
                x = nn.relu(nn.Conv(width, (3, 3), dtype=self.dtype, name=f"conv_{group}_{i}")(x))
            found.append(x)
        return found

    def __call__(self, pixels_bhwc: jax.Array) -> list[jax.Array]:
        """Return the same as `stages`."""
        return self.stages(pixels_bhwc)


def from_state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert the arrays of torchvision's `vgg16`, with or without its classifier, to parameters.

    Args:
      arrays: The arrays by name.

    Returns:
      The tree of parameters.

    Raises:
      ValueError: If arrays are missing or have another shape; the message lists all of them.
    """
    sources: dict[tuple[str, ...], state_dict.Source] = {}
    number = 0
    for group, widths in enumerate(GROUPS):
        for i in range(len(widths)):
            sources[f"conv_{group}_{i}",] = state_dict.Source(f"features.{number}")
            number += 2  # a convolution and its ReLU
        number += 1  # the pooling
    return state_dict.parameters(Vgg16(), arrays, sources)
