"""EfficientNet-Lite0 with its ImageNet weights: its numbers equal those of PyTorch, and photographs are recognized."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from refocus_jax.judges import efficientnet_lite, features
from refocus_jax.runtime import weight_files


@pytest.fixture(scope="module")
def arrays():
    return weight_files.read(features.efficientnet_lite_file("efficientnet_lite0"))


@pytest.fixture(scope="module")
def params(arrays):
    return efficientnet_lite.from_state_dict(arrays)


# Of each stage: mean, standard deviation, channel 3 of the first pixel, the last channel of the last.
TORCH_STAGES = (
    ((24, 20, 16), (-0.01271, 10.63487, 2.90619, 4.78642)), ((12, 10, 24), (-0.31681, 11.14686, -16.24959, 11.65798)),
    ((6, 5, 40), (-1.46092, 7.80381, 13.62441, -6.48611)), ((3, 3, 112), (-0.25874, 6.00347, -7.49013, 6.00175)),
    ((2, 2, 320), (-0.07001, 2.40509, -0.35508, 0.44221)))
TORCH_LOGITS = (-4.45569, -1.83172, -1.58417, -2.30111, 2.02085)


def test_numbers_are_those_of_pytorch(params):
    """Computed with PyTorch's own convolutions and BatchNorms from the same file, on sides that 32 does not divide."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 48, 40, 3), np.uint8).astype(np.float32)
    network = efficientnet_lite.EfficientNetLite(precision=jax.lax.Precision.HIGHEST)
    both = jax.jit(lambda params: [network.apply({"params": params}, pixels, method=m) for m in ("stages", "__call__")])
    stages, (pool, logits) = jax.device_get(both(params))
    for stage, (shape, expected) in zip(stages, TORCH_STAGES, strict=True):
        assert stage.shape == (1, *shape)
        found = stage.mean(), stage.std(), stage[0, 0, 0, 3], stage[0, -1, -1, -1]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(logits[0, :5], TORCH_LOGITS, atol=1e-4)
    assert pool.shape == (1, 1280) and pool.min() == 0 and pool.max() <= 6


@pytest.mark.parametrize("side", [1, 6, 7])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("strides", [1, 2])
def test_filters_are_convolutions_with_one_group_per_channel(side, kernel, strides):
    """The rule for gradients is our own, so it is compared with that of XLA's convolution."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, side, 6, 4)), rng.normal(size=(kernel, kernel, 1, 4))
    module = efficientnet_lite.DepthwiseConv(kernel=kernel, strides=strides, dtype=jnp.float32)

    def ours(x, weights):
        return module.apply({"params": {"kernel": weights, "bias": jnp.zeros(4)}}, x)

    def xla(x, weights):
        return jax.lax.conv_general_dilated(x, weights, (strides, strides), "SAME", feature_group_count=4,
                                            dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @functools.partial(jax.jit, static_argnums=0)
    def all_of(filtered, x, weights):
        y, gradients = jax.vjp(filtered, x, weights)
        return y, gradients(jnp.cos(3 * y))

    arguments = [a.astype(np.float32) for a in (x, weights)]
    for found, expected in zip(*(jax.tree.leaves(all_of(f, *arguments)) for f in (ours, xla)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("side", [64, 300])
def test_images_are_resized_as_by_pillow(side):
    """On black and white noise, the hardest case: Pillow rounds between its two passes and at the end."""
    image = np.random.default_rng(0).integers(0, 2, (side, side + 7, 3), np.uint8) * 255
    expected = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
    found = jax.jit(efficientnet_lite.resize)(image[None].astype(np.float32))[0]
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_files_of_other_networks_are_refused(arrays):
    others = {name: array for name, array in arrays.items() if not name.startswith("_fc")}
    with pytest.raises(ValueError, match="EfficientNetLite; missing: _fc.bias, _fc.weight; of another shape: nothing"):
        efficientnet_lite.from_state_dict(others)
