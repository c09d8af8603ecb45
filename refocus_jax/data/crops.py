"""Square crops of images: random ones for training, evenly spread ones for evaluation."""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from refocus_jax.data.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropRule:
    """How images become square crops.

    Attributes:
      image_size: Side s of the crops in pixels, at least 1.
      resize_ratio: The short side is first resized to `round(resize_ratio * image_size)`. 0 crops at native resolution
        and enlarges only images that are smaller than the crop.
      flip: Whether half of the random crops are mirrored.
      crops_per_image: Number of evenly spread crops that each image gives, at least 1.

    Raises:
      ValueError: If a number is out of its range.
    """

    image_size: int
    resize_ratio: float = 0.0
    flip: bool = False
    crops_per_image: int = 1

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; give at least 1")
        if self.resize_ratio != 0 and self.resize_ratio < 1:
            raise ValueError(f"resize_ratio is {self.resize_ratio}; give 0 (crop at native resolution) or at least "
                             "1: a "
                             "smaller image could not hold the crop")
        if self.crops_per_image < 1:
            raise ValueError(f"crops_per_image is {self.crops_per_image}; give at least 1")

    def __str__(self) -> str:
        resized = (f"short side to {round(self.resize_ratio * self.image_size)} by Lanczos" if self.resize_ratio
                   else "native resolution")
        return f"{resized}, {self.image_size} x {self.image_size} pixels"

    def random(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        """Return a random crop of a record: `{"image": uint8 (s, s, 3), "label": int32}`."""
        image_hwc = self._resized(record["image"])
        top = rng.integers(image_hwc.shape[0] - self.image_size, endpoint=True)
        left = rng.integers(image_hwc.shape[1] - self.image_size, endpoint=True)
        crop_hwc = image_hwc[top:top + self.image_size, left:left + self.image_size]
        if self.flip and rng.random() < 0.5:
            crop_hwc = crop_hwc[:, ::-1]
        return {"image": crop_hwc, "label": np.int32(record["label"])}

    def spread(self, image_count: int, index: int, record: Record) -> dict[str, Any]:
        """Return evenly spread crop number `index`, as `random` does.

        All `image_count` images give their n-th crop before any of them gives the next one.
        """
        crop_hwc = self.at(record["image"], *_spread_position(index // image_count))
        return {"image": crop_hwc, "label": np.int32(record["label"])}

    def at(self, image_hwc: np.ndarray, vertical: float = 0.5, horizontal: float = 0.5) -> np.ndarray:
        """Return the crop at a position in [0, 1]^2 of the resized image; the default is its centre."""
        image_hwc = self._resized(image_hwc)
        top = round(vertical * (image_hwc.shape[0] - self.image_size))
        left = round(horizontal * (image_hwc.shape[1] - self.image_size))
        return image_hwc[top:top + self.image_size, left:left + self.image_size]

    def _resized(self, image_hwc: np.ndarray) -> np.ndarray:
        """Resize to the short side of the rule with a Lanczos filter; the long side is truncated to whole pixels."""
        height, width, _ = image_hwc.shape
        short = min(height, width)
        target = round(self.resize_ratio * self.image_size) if self.resize_ratio > 0 else max(short, self.image_size)
        if target == short:
            return image_hwc
        size = (width * target // short, height * target // short)
        return np.asarray(Image.fromarray(image_hwc).resize(size, Image.Resampling.LANCZOS))


def _spread_position(crop_index: int) -> tuple[float, float]:
    """Position of one crop in a sequence that starts at the centre of the unit square and fills it evenly.

    This is the Halton sequence in bases 2 and 3, shifted. Unlike a rectangular grid, it is even for any number of crops
    and any aspect ratio.
    """
    return (0.5 + _radical_inverse(crop_index, 2)) % 1.0, (0.5 + _radical_inverse(crop_index, 3)) % 1.0


def _radical_inverse(number: int, base: int) -> float:
    """Mirror the digits of a number at the radix point: 6 = 110 in base 2 gives 0.011 = 3/8."""
    inverse, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        inverse += digit * scale
    return inverse
