"""The frozen network of stage 1's perceptual loss, by its setting."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from refocus_jax.evaluation import features
from refocus_jax.models import efficientnet_lite, vgg


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
            raise ValueError(f"perceptual is {setting!r}, which needs images of {vgg.MIN_IMAGE_SIZE} pixels, and "
                             f"image_size is {image_size}; set perceptual=efficientnet_lite0 or none")
        return Perceptual(vgg.Vgg16(dtype), lambda: path, vgg.from_state_dict)
    raise ValueError(f"perceptual is {setting!r}; give efficientnet_lite0, vgg16:PATH or none")
