"""The photographs inside the scikit-image wheel, the source `photos`: one class each; nothing is downloaded."""

import importlib.resources

import numpy as np

from refocus_jax.data import images
from refocus_jax.data.records import ArraySource

# These are left out: drawings and text, the second view of the motorcycle, and two nearly empty images (cell, clock).
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "cameraman": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "galaxies": "hubble_deep_field.jpg",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "tissue": "ihc.png",
}

# The square inside the round field of view of the retina image, which is black outside of it.
_RETINA_SQUARE = slice(225, 1185)


def photograph_columns(width: int, split: str) -> slice:
    """Return the pixel columns of a photograph in a split: the right quarter (at least 96) is for validation."""
    boundary = width - max(width // 4, 96)
    return slice(0, boundary) if split == "train" else slice(boundary, width)


def read_photograph(class_name: str) -> np.ndarray:
    """Read one of `PHOTOGRAPHS` from the installed scikit-image, uint8 (h, w, 3)."""
    file = importlib.resources.files("skimage") / "data" / PHOTOGRAPHS[class_name]
    if not file.is_file():
        raise FileNotFoundError(f"the installed scikit-image does not ship {file.name}; install version 0.26")
    with file.open("rb") as stream:
        image_hwc = images.decode_rgb(stream, class_name)
    return image_hwc[_RETINA_SQUARE, _RETINA_SQUARE] if class_name == "retina" else image_hwc


def load(split: str) -> ArraySource:
    """Read one split of all photographs."""
    photographs = (read_photograph(class_name) for class_name in PHOTOGRAPHS)
    return ArraySource(
        images=tuple(image_hwc[:, photograph_columns(image_hwc.shape[1], split)] for image_hwc in photographs),
        labels=range(len(PHOTOGRAPHS)),
        class_names=tuple(PHOTOGRAPHS),
    )
