"""Resampling operators against independent definitions and known PyTorch weights."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.focus import resample
from refocus_jax.focus.resample import MATRICES, resize

OPERATORS = sorted(MATRICES)
SIZES = [(8, 4), (9, 3), (7, 3), (16, 5), (16, 13), (5, 7), (3, 12), (6, 1), (1, 4)]


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def pool_adaptively(image_bhwc, height, width):
    """torch.nn.AdaptiveAvgPool2d by its documentation, bin by bin."""
    b, h, w, c = image_bhwc.shape
    pooled = np.zeros((b, height, width, c))
    for y in range(height):
        for x in range(width):
            rows = slice(math.floor(y * h / height), math.ceil((y + 1) * h / height))
            columns = slice(math.floor(x * w / width), math.ceil((x + 1) * w / width))
            pooled[:, y, x] = image_bhwc[:, rows, columns].mean((1, 2))
    return pooled


@pytest.mark.parametrize("sides", [(8, 8, 4, 2), (7, 16, 3, 5), (13, 10, 10, 13), (16, 16, 13, 6), (5, 5, 1, 1)])
def test_area_is_adaptive_average_pooling(sides):
    height, width, new_height, new_width = sides
    image = random_image(height, width)
    np.testing.assert_allclose(resize(image, (new_height, new_width), "area"),
                               pool_adaptively(image, new_height, new_width), atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_rows_sum_to_one(operator, n, m):
    matrix = MATRICES[operator](n, m)
    assert matrix.shape == (m, n) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
def test_equal_sizes_are_the_identity(operator):
    np.testing.assert_array_equal(MATRICES[operator](6, 6), np.eye(6))
    image = jnp.asarray(random_image(6, 6))
    assert resize(image, 6, operator) is image


@pytest.mark.parametrize("operator", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_operators_do_not_prefer_a_direction(operator, n, m):
    matrix = MATRICES[operator](n, m)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-6)


def test_bicubic_has_the_weights_of_pytorch():
    """A = -0.75; jax.image.resize would give -0.0625 and 0.5625 at t = 0.5."""
    halved = resample.bicubic_matrix(8, 4)
    np.testing.assert_allclose(halved[1], [0, -0.09375, 0.59375, 0.59375, -0.09375, 0, 0, 0], atol=1e-7)
    doubled = resample.bicubic_matrix(6, 12)
    np.testing.assert_allclose(doubled[5], [0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0], atol=1e-7)
    np.testing.assert_allclose(doubled[6], [0, -0.03515625, 0.26171875, 0.87890625, -0.10546875, 0], atol=1e-7)


def test_bicubic_clamps_at_the_border():
    """What falls off the edge is added to the edge sample."""
    np.testing.assert_allclose(resample.bicubic_matrix(8, 4)[0, :3], [0.5, 0.59375, -0.09375], atol=1e-7)


def test_bilinear_reads_two_samples_only():
    """Half-pixel centres, no anti-aliasing: a factor of 4 averages the inner two of four samples."""
    np.testing.assert_allclose(resample.bilinear_matrix(8, 2), [[0, .5, .5, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, .5, .5, 0]])
    np.testing.assert_allclose(resample.bilinear_matrix(2, 4), [[1, 0], [.75, .25], [.25, .75], [0, 1]])


@pytest.mark.parametrize(("n", "m"), [(24, 9), (13, 31)])
def test_bilinear_keeps_a_ramp(n, m):
    """On half-pixel centres, clamped to the outermost samples."""
    centres = (np.arange(m) + 0.5) * n / m - 0.5
    np.testing.assert_allclose(resample.bilinear_matrix(n, m) @ np.arange(n), np.clip(centres, 0, n - 1), atol=1e-5)


def test_stride_takes_samples():
    image = random_image(12, 8)
    np.testing.assert_array_equal(resize(image, (4, 2), "stride"), image[:, ::3, ::4])
    np.testing.assert_array_equal(resize(random_image(7, 1), (3, 1), "stride"), random_image(7, 1)[:, [0, 2, 4]])


@pytest.mark.parametrize("operator", OPERATORS)
def test_axes_are_resized_alike(operator):
    image = random_image(9, 16)
    direct = resize(image, (4, 7), operator)
    swapped = resize(image.transpose(0, 2, 1, 3), (7, 4), operator)
    assert direct.shape == (2, 4, 7, 3)
    np.testing.assert_allclose(direct, np.asarray(swapped).transpose(0, 2, 1, 3), atol=1e-6)


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match="'lanczos' is unknown; choose one of .*'area', 'bicubic'"):
        resize(random_image(4, 4), 2, "lanczos")
