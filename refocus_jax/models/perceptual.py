"""How far apart two images look to a frozen network: the distance of its features, taken as LPIPS does (Zhang et al.
2018), but without the weights that LPIPS fits to human judgements.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from refocus_jax.models.examples import keep_divided


class FeatureNetwork(Protocol):
    """`EfficientNetLite` or `Vgg16`."""

    def stages(self, pixels_bhwc: jax.Array) -> list[jax.Array]: ...


def distance(network: FeatureNetwork, params: Any, image_bhwc: jax.Array, target_bhwc: jax.Array) -> jax.Array:
    """The squared distance of features whose channels have unit norm at every place: 0 ... 4, float32, scalar.

    Mean over places and examples, then over the network's stages. Images enter at their own size.

    Args:
      image_bhwc, target_bhwc: in [-1, 1], or a little outside.
    """

    def features(image):
        pixels = 127.5 * (keep_divided(image) + 1)
        return map(_unit_norm, network.apply({"params": params}, pixels, method="stages"))

    stages = [jnp.square(a - b).sum(axis=-1).mean()
              for a, b in zip(features(image_bhwc), features(target_bhwc), strict=True)]
    return sum(stages) / len(stages)


def _unit_norm(x_bhwc: jax.Array) -> jax.Array:
    x_bhwc = x_bhwc.astype(jnp.float32)
    # Where all channels are 0 the gradient shall be too.
    return x_bhwc * jax.lax.rsqrt(jnp.square(x_bhwc).sum(axis=-1, keepdims=True) + 1e-10)
