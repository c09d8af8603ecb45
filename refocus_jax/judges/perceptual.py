"""How far apart two images look to a frozen network: the distance of its features, taken as LPIPS does (Zhang et al.
2018), but without the weights that LPIPS fits to human judgements.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.judges import efficientnet_lite, features, vgg
from refocus_jax.models.sharding import keep_divided


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


class Perceptual(NamedTuple):
    """A network, and where its parameters come from; nothing has been read yet."""

    network: nn.Module
    file: Callable[[], Any]
    from_state_dict: Callable[[Any], Any]

    def load(self) -> Any:
        """The parameters.

        Raises:
          FileNotFoundError: no such file. ValueError: it is damaged or another network's.
        """
        return features.read_parameters(self.file(), self.from_state_dict)


def choose(setting: str, image_size: int, dtype: jnp.dtype) -> Perceptual | None:
    """The network of a setting: "efficientnet_lite0", "vgg16:PATH" (torchvision's), or "none".

    Raises:
      ValueError: another setting, or images too small for it.
    """
    name, _, path = setting.partition(":")
    if setting == "none":
        return None
    if setting == "efficientnet_lite0":
        return Perceptual(efficientnet_lite.EfficientNetLite(dtype=dtype), features.efficientnet_lite0_file,
                          efficientnet_lite.from_state_dict)
    if name == "vgg16" and path:
        if image_size < vgg.MIN_IMAGE_SIZE:
            raise ValueError(f"tokenizer.perceptual_network is {setting!r}, which needs images of "
                             f"{vgg.MIN_IMAGE_SIZE} pixels, and "
                             f"image_size is {image_size}; set tokenizer.perceptual_network=efficientnet_lite0 or none")
        return Perceptual(vgg.Vgg16(dtype), lambda: path, vgg.from_state_dict)
    raise ValueError(f"tokenizer.perceptual_network is {setting!r}; give efficientnet_lite0, vgg16:PATH or none")
