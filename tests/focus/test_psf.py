"""Point-spread functions: unit sum, exact areas, continuity in the radius, and the borders of the blur."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from refocus_jax.focus.psf import PSFS, blur, disk_kernel, gaussian_kernel

KERNELS = [disk_kernel, gaussian_kernel]
RADII = [0.0, 1e-3, 0.3, 0.5, 0.501, 0.75, 1.0, 1.5, 2.2, 5.5, 12.0]


def padded(kernel, half):
    return np.pad(kernel.astype(np.float64), half - kernel.shape[0] // 2)


def random_image(height, width):
    return np.random.default_rng(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("kernel_of", KERNELS)
@pytest.mark.parametrize("radius", RADII)
def test_kernels_are_symmetric_averages(kernel_of, radius):
    kernel = kernel_of(radius)
    assert kernel.dtype == np.float32 and kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
    assert kernel.min() > -1e-12
    np.testing.assert_allclose(kernel.sum(dtype=np.float64), 1, atol=1e-6)
    for image in (kernel[::-1], kernel[:, ::-1], kernel.T):
        np.testing.assert_allclose(kernel, image, atol=1e-7)


@pytest.mark.parametrize("kernel_of", KERNELS)
@pytest.mark.parametrize("radius", [0.0, 1e-3, 0.05])
def test_a_small_radius_gives_a_delta(kernel_of, radius):
    np.testing.assert_allclose(padded(kernel_of(radius), 1), padded(np.ones((1, 1)), 1), atol=1e-12)


@pytest.mark.parametrize("kernel_of", KERNELS)
def test_kernels_are_continuous_in_the_radius(kernel_of):
    """A step of the radius moves weight in proportion to the step: |dk/d rho| is about 2 / rho, and bounded near 0.

    The slack of 2e-4 is what the Gaussian, cut at four sigma, gains when its support grows. A disk of whole pixels
    jumps by 8 / (pi rho^2) or more, 0.018 at the largest radius here.
    """
    step = 1e-3
    starts = np.concatenate([np.arange(0, 2, step), np.arange(2, 12, 0.25) - step / 2])
    for radius in starts:
        before, after = (padded(kernel_of(float(r)), 25) for r in (radius, radius + step))
        assert np.abs(after - before).sum() <= 5 * step / max(radius, 0.5) + 2e-4, radius


@pytest.mark.parametrize("radius", [0.4, 0.6, 0.75, 1.0, 1.5, 2.2, 3.0, 4.7])
def test_disk_taps_are_areas(radius):
    samples, half = 128, 6
    positions = (np.arange((2 * half + 1) * samples) + 0.5) / samples - half - 0.5
    inside = positions[:, None] ** 2 + positions[None, :] ** 2 <= radius**2
    areas = inside.reshape(2 * half + 1, samples, 2 * half + 1, samples).mean((1, 3))
    area = min(np.pi * radius**2, areas.sum())
    np.testing.assert_allclose(padded(disk_kernel(radius), half) * area, areas, atol=4e-3)


@pytest.mark.parametrize("radius", [3.0, 5.5, 9.0, 12.0])
def test_the_disk_has_its_first_spectral_null_where_an_aperture_has_it(radius):
    kernel = disk_kernel(radius).astype(np.float64)
    offsets = np.arange(kernel.shape[0]) - kernel.shape[0] // 2
    frequencies = np.linspace(0, 1 / radius, 2001)  # cycles per pixel
    response = np.cos(2 * np.pi * frequencies[:, None] * offsets) @ kernel.sum(0)
    first_null = frequencies[np.argmax(response < 0)]
    np.testing.assert_allclose(first_null, 0.61 / radius, rtol=0.01)


@pytest.mark.parametrize("radius", [3.0, 5.5, 8.0])
def test_disk_and_gaussian_spread_alike(radius):
    """The second moment of a disk is rho^2 / 4 per axis; pixels add their own 1 / 12."""
    for kernel_of in KERNELS:
        profile = kernel_of(radius).sum(0, dtype=np.float64)
        offsets = np.arange(len(profile)) - len(profile) // 2
        np.testing.assert_allclose(profile @ offsets**2, radius**2 / 4 + 1 / 12, rtol=0.02)


@pytest.mark.parametrize("kernel_of", KERNELS)
@pytest.mark.parametrize("radius", [-1.0, np.nan, np.inf])
def test_an_impossible_radius_is_refused(kernel_of, radius):
    with pytest.raises(ValueError, match=f"PSF radius is {radius}; give a finite radius >= 0"):
        kernel_of(radius)


@pytest.mark.parametrize("psf", PSFS)
def test_radius_zero_is_the_identity_bit_for_bit(psf):
    image = random_image(5, 4)
    np.testing.assert_array_equal(jax.jit(lambda x: blur(x, psf, 0.0))(image), image)


def test_without_a_psf_nothing_is_blurred():
    image = random_image(5, 4)
    np.testing.assert_array_equal(blur(image, "none", 100.0), image)


@pytest.mark.parametrize(("psf", "kernel_of"), [("disk", disk_kernel), ("gaussian", gaussian_kernel)])
def test_blur_convolves_each_channel_with_reflected_borders(psf, kernel_of):
    image = random_image(11, 8)
    expected = np.empty_like(image)
    for b in range(2):
        for c in range(3):
            expected[b, :, :, c] = scipy.ndimage.convolve(image[b, :, :, c], kernel_of(2.2), mode="mirror")
    np.testing.assert_allclose(blur(jnp.asarray(image), psf, 2.2), expected, atol=1e-6)


@pytest.mark.parametrize("psf", PSFS)
@pytest.mark.parametrize("downsample", ["bilinear", "stride", "area"])
def test_both_implementations_agree_at_every_radius_gradients_too(psf, downsample):
    """Within 1e-6 of an image in [-1, 1]; the gradient of a random projection likewise."""
    image = jnp.asarray(random_image(24, 24)[:1])
    projection = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 7, 7, 3)).astype(np.float32))

    def blurred(image, radius, implementation):
        return blur(image, psf, radius, 7, downsample, implementation)

    for radius in (0.0, 0.3, 0.7, 1.5, 3.0, 6.1, 9.0) if psf != "none" else (0.0, 3.0):
        found = []
        for implementation in ("matrices", "convolution"):
            value, pull_back = jax.vjp(lambda x, r=radius, i=implementation: blurred(x, r, i), image)
            found.append((value, pull_back(projection)[0]))
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_auto_is_one_of_the_two_and_another_name_is_refused():
    image = jnp.asarray(random_image(8, 8))
    np.testing.assert_array_equal(blur(image, "disk", 1.5), blur(image, "disk", 1.5, implementation="matrices"))
    with pytest.raises(ValueError, match=r"focus\.implementation is 'fft'; choose one of .*'convolution'"):
        blur(image, "disk", 1.5, implementation="fft")


def test_a_radius_beyond_the_image_is_refused():
    image = jnp.zeros((1, 8, 12, 3))
    blur(image, "disk", 7.4)
    with pytest.raises(ValueError, match=r"radius 7\.6 px needs an image side above 8 px, not 8x12; .*focus\.rho_max"):
        blur(image, "disk", 7.6)


def test_an_unknown_psf_is_refused():
    with pytest.raises(ValueError, match=r"focus\.psf is 'box'; choose one of .*'disk'"):
        blur(jnp.zeros((1, 8, 8, 3)), "box", 0.0)


def test_no_radius_meets_rounding():
    """Squares of the radius by numpy and by Python differ in the last bit: the root of a negative number would warn."""
    for radius in np.random.default_rng(0).uniform(0, 30, 500):
        assert np.isfinite(disk_kernel(float(radius))).all()
