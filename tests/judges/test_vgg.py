"""VGG-16 and the perceptual distance against PyTorch's, on weights that follow from a rule."""

import jax
import numpy as np
import pytest

from refocus_jax.judges import perceptual, vgg
from tests.fixtures import weights

# Numbers of the layers in torchvision's `features`.
LAYERS = dict(zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), sum(vgg.GROUPS, ()), strict=True))


@pytest.fixture(scope="module")
def arrays():
    arrays, channels = {"classifier.0.bias": np.zeros(4096)}, 3
    for number, width in LAYERS.items():
        name = f"features.{number}"
        kernel = weights.weight(f"{name}.weight", (width, channels, 3, 3), 7)
        arrays |= {f"{name}.weight": np.float32(2**0.5) * kernel,
                   f"{name}.bias": weights.weight(f"{name}.bias", (width,), 7)}
        channels = width
    return arrays


# Of each stage: mean, standard deviation, channel 3 of the first image's first pixel, the last one's last channel.
TORCH_STAGES = (
    ((33, 32, 64), (0.61264, 0.96697, 0.0, 0.12972)), ((16, 16, 128), (1.18456, 1.69459, 0.0, 1.10772)),
    ((8, 8, 256), (1.25981, 1.81972, 0.82642, 0.12484)), ((4, 4, 512), (1.11819, 1.61826, 0.0, 0.56881)),
    ((2, 2, 512), (0.48939, 0.69382, 0.0, 1.01775)))
TORCH_DISTANCE = 0.2914544  # LPIPS of the first image and the second with all weights 1, mean over stages


def test_numbers_are_those_of_pytorch(arrays):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 33, 32, 3)).astype(np.float32)
    network, params = vgg.Vgg16(), vgg.from_state_dict(arrays)

    def run(params, pixels):
        images = pixels / 127.5 - 1
        return network.apply({"params": params}, pixels), perceptual.distance(network, params, images[:1], images[1:])

    stages, distance = jax.device_get(jax.jit(run)(params, pixels))
    for stage, (shape, expected) in zip(stages, TORCH_STAGES, strict=True):
        assert stage.shape == (2, *shape)
        found = stage.mean(), stage.std(), stage[0, 0, 0, 3], stage[1, -1, -1, -1]
        np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(distance, TORCH_DISTANCE, rtol=1e-5)


def test_files_of_other_networks_are_refused(arrays):
    others = {name: array for name, array in arrays.items() if name != "features.28.bias"}
    with pytest.raises(ValueError, match="Vgg16; missing: features.28.bias; of another shape: nothing"):
        vgg.from_state_dict(others)
