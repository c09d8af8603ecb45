"""Perceptual distance of two images: the distance of the features of a frozen network.

It is computed as in LPIPS (Zhang et al. 2018), but without the weights that LPIPS fits to human judgements.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from refocus_jax.judges import efficientnet_lite, features, vgg
from refocus_jax.models.sharding import keep_divided


class FeatureNetwork(Protocol):
    """A flax module that returns features at several resolutions: `EfficientNetLite` or `Vgg16`."""

    def stages(self, pixels_bhwc: jax.Array) -> list[jax.Array]:
        """Return the features of each resolution from pixels (b, h, w, 3) in [0, 255]."""

    def apply(self, variables: Any, pixels_bhwc: jax.Array, *, method: str) -> Any:
        """Call the method of this name, such as "stages", with the parameters in `variables`."""


def distance(network: FeatureNetwork, params: Any, image_bhwc: jax.Array, target_bhwc: jax.Array) -> jax.Array:
    """Compute the squared distance of features whose channels have unit norm at every place.

    The distance is averaged over places and examples, and then over the network's stages. Images are not resized.

    Args:
      network: The network.
      params: Its parameters.
      image_bhwc: Images in [-1, 1], or slightly outside.
      target_bhwc: The images to compare with, of the same shape and range.

    Returns:
      The distance, 0 to 4, a float32 scalar.
    """

    def features(image: jax.Array) -> Iterable[jax.Array]:
        pixels = 127.5 * (keep_divided(image) + 1)
        return map(_unit_norm, network.apply({"params": params}, pixels, method="stages"))

    stages = [jnp.square(a - b).sum(axis=-1).mean()
              for a, b in zip(features(image_bhwc), features(target_bhwc), strict=True)]
    return cast(jax.Array, sum(stages)) / len(stages)


def _unit_norm(x_bhwc: jax.Array) -> jax.Array:
    x_bhwc = x_bhwc.astype(jnp.float32)
    # The small constant makes the gradient 0 where all channels are 0.
    return x_bhwc * jax.lax.rsqrt(jnp.square(x_bhwc).sum(axis=-1, keepdims=True) + 1e-10)


class Perceptual(NamedTuple):
    """A network and the origin of its parameters, which have not been read yet.

    Attributes:
      network: The network.
      file: Function that returns the path of the weights.
      from_state_dict: The function of this name in the network's module.
    """

    network: nn.Module
    file: Callable[[], Any]
    from_state_dict: Callable[[Any], Any]

    def load(self) -> Any:
        """Read the parameters.

        Returns:
          The tree of parameters.

        Raises:
          FileNotFoundError: If there is no such file.
          ValueError: If the file is damaged or belongs to another network.
        """
        return features.read_parameters(self.file(), self.from_state_dict)


def choose(setting: str, image_size: int, dtype: jnp.dtype) -> Perceptual | None:
    """Choose the network of the setting `tokenizer.perceptual_network`.

    Args:
      setting: "efficientnet_lite0", "vgg16:PATH" with torchvision's weights, or "none".
      image_size: Side of the images in pixels.
      dtype: Type of the network's activations.

    Returns:
      The network; None for "none".

    Raises:
      ValueError: If the setting is unknown, or if the images are too small for the network.
    """
    name, _, path = setting.partition(":")
    if setting == "none":
        return None
    if setting == "efficientnet_lite0":
        return Perceptual(efficientnet_lite.EfficientNetLite(dtype=dtype),
                          functools.partial(features.efficientnet_lite_file, setting),
                          efficientnet_lite.from_state_dict)
    if name == "vgg16" and path:
        if image_size < vgg.MIN_IMAGE_SIZE:
            raise ValueError(f"tokenizer.perceptual_network is {setting!r}, which needs images of at least "
                             f"{vgg.MIN_IMAGE_SIZE} pixels, but image_size is {image_size}; set "
                             "tokenizer.perceptual_network=efficientnet_lite0 or none")
        return Perceptual(vgg.Vgg16(dtype=dtype), lambda: path, vgg.from_state_dict)
    raise ValueError(f"tokenizer.perceptual_network is {setting!r}; give efficientnet_lite0, vgg16:PATH or none")
