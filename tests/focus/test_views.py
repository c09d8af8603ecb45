"""Focus views: linear, complete (L + A = D), sharp at the last scale, and free of the alias that D has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import refocus_jax.focus
from refocus_jax.focus import GRID_SIZES, Pyramid, disk_kernel, gaussian_kernel

SQUARE = Pyramid(grid_sizes=(2, 4, 8, 16), stride=2, rho_max=4.0)  # 32 px, factors 8, 4, 2, 1
RAGGED = Pyramid(grid_sizes=GRID_SIZES["var10"], stride=2, rho_max=1.5)  # 32 px, factors 16, 8, 16/3, 4, 16/5, ...
VARIANTS = {
    "square": SQUARE,
    "ragged": RAGGED,
    "nyquist": Pyramid(grid_sizes=(2, 3, 8), stride=2, rho_max=3.0, schedule="nyquist"),
    "gaussian": Pyramid(grid_sizes=(2, 3, 8), stride=2, rho_max=3.0, psf="gaussian"),
    "unblurred": Pyramid(grid_sizes=(2, 3, 8), stride=2, rho_max=3.0, psf="none"),
    "stride": Pyramid(grid_sizes=(2, 3, 8), stride=2, rho_max=3.0, downsample="stride"),
    "area": Pyramid(grid_sizes=(2, 3, 8), stride=2, rho_max=3.0, downsample="area"),
}
variants = pytest.mark.parametrize("pyramid", VARIANTS.values(), ids=VARIANTS)
jitted_views = jax.jit(Pyramid.views, static_argnums=0)


def random_image(pyramid, seed=0, batch=2):
    shape = (batch, pyramid.image_size, pyramid.image_size, 3)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def grating(side, frequency, angle=0.0):
    """cos of a plane wave, `frequency` in cycles per pixel, (1, side, side, 1)."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + 0.4)
    return jnp.asarray(wave[None, :, :, None], jnp.float32)


def power(image):
    return float(jnp.mean(image**2))


@variants
def test_views_are_linear(pyramid):
    x, y = random_image(pyramid, 0), random_image(pyramid, 1)
    for of_sum, of_x, of_y in zip(*(jitted_views(pyramid, z) for z in (2 * x - 3 * y, x, y)), strict=True):
        for both, one, other in zip(of_sum, of_x, of_y, strict=True):
            np.testing.assert_allclose(both, 2 * one - 3 * other, atol=1e-5)


@variants
@pytest.mark.parametrize("key", [None, jax.random.key(3)], ids=["clean", "noisy"])
def test_focused_and_residual_make_the_downsampled_view(pyramid, key):
    for scale, view in enumerate(jitted_views(pyramid, random_image(pyramid), key)):
        side = pyramid.stride * pyramid.grid_sizes[scale]
        assert view.focused.shape == view.downsampled.shape == view.residual.shape == (2, side, side, 3)
        np.testing.assert_allclose(view.focused + view.residual, view.downsampled, atol=1e-6)


@variants
def test_the_last_view_is_the_image_bit_for_bit(pyramid):
    image = random_image(pyramid)
    last = jitted_views(pyramid, image)[-1]
    np.testing.assert_array_equal(last.focused, image)
    np.testing.assert_array_equal(last.downsampled, image)
    np.testing.assert_array_equal(last.residual, 0)


def test_without_a_psf_nothing_is_left_to_the_residual():
    for view in VARIANTS["unblurred"].views(random_image(VARIANTS["unblurred"])):
        np.testing.assert_array_equal(view.residual, 0)


@variants
def test_a_uniform_image_stays_so(pyramid):
    image = jnp.full_like(random_image(pyramid), 0.7)
    for view in jitted_views(pyramid, image):
        np.testing.assert_allclose(view.focused, 0.7, atol=1e-6)


@pytest.mark.parametrize(("psf", "kernel_of"), [("disk", disk_kernel), ("gaussian", gaussian_kernel)])
def test_a_point_becomes_the_chosen_kernel(psf, kernel_of):
    point = jnp.zeros((1, 32, 32, 1)).at[0, 16, 16, 0].set(1.0)
    focused = Pyramid(grid_sizes=(16, 32), stride=1, rho_max=3.0, psf=psf, downsample="stride").views(point)[0].focused
    kernel = np.pad(kernel_of(3.0), 16)
    sampled = slice(len(kernel) // 2 - 16, len(kernel) // 2 + 16, 2)
    np.testing.assert_allclose(focused[0, :, :, 0], kernel[sampled, sampled], atol=1e-6)


def test_noise_comes_with_a_key_and_has_the_size_of_its_scale():
    pyramid = Pyramid(grid_sizes=(4, 8, 16), stride=2, rho_max=2.0, noise_first=0.01, noise_last=0.03)
    image = random_image(pyramid, batch=16)
    noisy, clean = pyramid.views(image, jax.random.key(0)), pyramid.views(image)
    noises = [a.focused - b.focused for a, b in zip(noisy, clean, strict=True)]
    for noise, std in zip(noises, (0.01, 0.02, 0.03), strict=True):
        np.testing.assert_allclose(jnp.std(noise), std, rtol=0.05)  # 3,072 values or more: 4 sigma
        np.testing.assert_allclose(jnp.mean(noise), 0, atol=0.1 * std)
    for with_noise, without in zip(noisy, clean, strict=True):
        np.testing.assert_array_equal(with_noise.downsampled, without.downsampled)
    np.testing.assert_allclose(noisy[-1].residual, -noises[-1], atol=1e-6)


def test_noise_is_the_key_s_and_differs_between_scales():
    pyramid = Pyramid(grid_sizes=(8, 9), stride=1, rho_max=0.1, noise_first=1.0, noise_last=1.0)
    image = jnp.zeros((1, 9, 9, 3))
    first, again, other = (pyramid.views(image, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0].focused, again[0].focused)
    assert not np.array_equal(first[0].focused, other[0].focused)
    assert not np.array_equal(first[0].focused.ravel(), first[1].focused.ravel()[: first[0].focused.size])


@pytest.mark.parametrize("downsample", ["stride", "bilinear"])
@pytest.mark.parametrize("above", [1.2, 1.4, 1.7])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_a_disk_keeps_alias_out_of_the_focused_view(downsample, above, angle):
    """All that a coarse view shows of a grating above its Nyquist rate is alias; D shows it, L does not.

    A disk with its first null at the Nyquist rate lets through at most 0.132 of an amplitude above it (J1's first side
    lobe), so 0.0175 of the power.
    """
    factor = 4
    grids = (16, 64)
    image = grating(64, above / (2 * factor), angle)
    sharp = Pyramid(grid_sizes=grids, stride=1, rho_max=1.0, psf="none", downsample=downsample).views(image)[0]
    nyquist = Pyramid(grid_sizes=grids, stride=1, rho_max=1.0, schedule="nyquist", downsample=downsample)
    blurred = nyquist.views(image)[0]
    np.testing.assert_array_equal(sharp.focused, blurred.downsampled)
    assert power(sharp.focused) > 0.1
    assert power(blurred.focused) < 0.03 * power(sharp.focused)
    assert power(blurred.residual) > 0.7 * power(sharp.focused)


@pytest.mark.parametrize("downsample", ["stride", "bilinear"])
def test_a_disk_lets_low_frequencies_through(downsample):
    image = grating(64, 0.1 / 8)
    pyramid = Pyramid(grid_sizes=(16, 64), stride=1, rho_max=1.0, schedule="nyquist", downsample=downsample)
    focused = pyramid.views(image)[0].focused
    assert power(focused) > 0.9 * power(image)


def test_factors_need_not_be_integers():
    np.testing.assert_allclose(RAGGED.downsample_factors[[0, 2, 4, 8, 9]], [16, 16 / 3, 16 / 5, 16 / 13, 1])
    assert RAGGED.image_size == 32
    radii = Pyramid(grid_sizes=GRID_SIZES["var10"], stride=2, rho_max=1.0, schedule="nyquist").radii()
    np.testing.assert_allclose(radii[:-1], 1.22 * RAGGED.downsample_factors[:-1])


def test_blur_is_measured_in_pixels_of_the_image():
    """The same scene at twice the resolution, with twice the radius, looks the same."""
    def scene(side):
        y, x = np.mgrid[:side, :side] / side + 0.5 / side
        return jnp.asarray(np.sin(20 * x + 13 * y * y)[None, :, :, None], jnp.float32)

    def inner_view(stride, rho_max):
        """The coarse view at 16 x 16, without the border, where the reflection differs by half a pixel."""
        pyramid = Pyramid(grid_sizes=(8, 32), stride=stride, rho_max=rho_max, downsample="area")
        focused = pyramid.views(scene(pyramid.image_size))[0].focused
        return focused.reshape(1, 16, stride // 2, 16, stride // 2, 1).mean((2, 4))[:, 3:-3, 3:-3]

    np.testing.assert_allclose(inner_view(4, 12.0), inner_view(2, 6.0), atol=0.01)
    assert jnp.abs(inner_view(4, 6.0) - inner_view(2, 6.0)).max() > 0.1


def test_radii_shrink_from_rho_max():
    np.testing.assert_allclose(SQUARE.radii(), [4, 3, 1, 0], atol=1e-12)


def test_the_one_call_form_is_the_pyramid():
    pyramid = Pyramid(grid_sizes=(2, 4, 8), stride=2, rho_max=2.0, psf="gaussian", schedule="cosine",
                      downsample="stride")
    image, key = random_image(pyramid), jax.random.key(5)
    views = refocus_jax.focus.views(image, grid_sizes=[2, 4, 8], stride=2, rho_max=2.0, psf="gaussian",
                                    downsample="stride", key=key)
    jax.tree.map(np.testing.assert_array_equal, views, pyramid.views(image, key))


@pytest.mark.parametrize(("changes", "message"), [
    (dict(grid_sizes=(4, 4, 8)), r"grid_sizes are \(4, 4, 8\); .* strictly increasing"),
    (dict(grid_sizes=(0, 4)), r"grid_sizes are \(0, 4\); .* positive"),
    (dict(grid_sizes=(4,)), "at least two sides"),
    (dict(psf="ring"), r"focus\.psf is 'ring'; choose one of .*'disk'"),
    (dict(downsample="bicubic"), r"focus\.downsample is 'bicubic'; choose one of .*'bilinear'"),
    (dict(schedule="linear"), r"focus\.schedule is 'linear'; choose 'cosine' or 'nyquist'"),
    (dict(rho_max=0.0), r"focus\.rho_max is 0\.0; give a radius > 0"),
])
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Pyramid(**dict(grid_sizes=(2, 4), stride=2, rho_max=1.0) | changes)


@pytest.mark.parametrize("shape", [(1, 16, 32, 3), (1, 16, 16, 3), (32, 32, 3)])
def test_an_image_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"image has shape .*; stride 2 and grid_sizes .* \(b, 32, 32, c\)"):
        SQUARE.views(jnp.zeros(shape))


def test_a_blur_wider_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"radius 40 px .* lower focus\.rho_max"):
        Pyramid(grid_sizes=(2, 4, 16), stride=2, rho_max=40.0).views(jnp.zeros((1, 32, 32, 3)))
