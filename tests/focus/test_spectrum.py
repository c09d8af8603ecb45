"""Section 3.4 holds to rounding for point sampling and the ideal filter: Eqs. 6, 7 and 8.

L = sample(H x), D = sample(x), A = D - L = sample(x - H x). Unnormalized FFTs carry the factor of Eq. 6 (1/2 per axis
at factor 2): a spectrum after down-sampling by s is the baseband of the image's divided by s^2, in 1-D by s.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from refocus_jax.focus.resample import resize
from refocus_jax.focus.spectrum import cosine_lowpass, cosine_spectrum, fold, ideal_lowpass, passband

CASES = [(16, 16, 2), (18, 18, 2), (24, 12, 4), (15, 30, 3), (12, 12, 1)]


def random_image(height, width, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (2, height, width, 3)), jnp.float32)


def sample(image_bhwc, factor):
    return resize(image_bhwc, (image_bhwc.shape[1] // factor, image_bhwc.shape[2] // factor), "stride")


def decompose(image_bhwc, factor):
    """Focused view and alias residual."""
    focused = sample(ideal_lowpass(image_bhwc, factor), factor)
    return focused, sample(image_bhwc, factor) - focused


def fft(image_bhwc):
    return np.fft.fft2(np.asarray(image_bhwc, np.float64), axes=(1, 2))


def energy(array):
    return float((np.abs(np.asarray(array)) ** 2).sum())


def grating(side, cycles):
    rows = np.cos(2 * np.pi * cycles * np.arange(side) / side)
    return jnp.asarray(np.broadcast_to(rows[None, :, None, None], (1, side, side, 1)), jnp.float32)


@pytest.mark.parametrize("height, width, factor", CASES)
def test_sampling_folds_the_spectrum(height, width, factor):
    """Eq. 6."""
    image = random_image(height, width)
    np.testing.assert_allclose(fold(fft(image), factor), fft(image[:, ::factor, ::factor]), atol=1e-4)


@pytest.mark.parametrize("height, width, factor", CASES)
def test_the_focused_view_is_the_baseband(height, width, factor):
    """L(w) = X(w) / factor^2 strictly below the new Nyquist rate, and nothing else: no alias."""
    image = random_image(height, width)
    spectrum, focused = fft(image), fft(decompose(image, factor)[0])
    for y in range(height // factor):
        for x in range(width // factor):
            # signed frequencies of the small grid, which index the large one as well
            v, u = (f - n if 2 * f >= n else f for f, n in ((y, height // factor), (x, width // factor)))
            below = 2 * abs(v) < height // factor and 2 * abs(u) < width // factor
            expected = spectrum[:, v, u] / factor**2 if below else 0
            np.testing.assert_allclose(focused[:, y, x], expected, atol=1e-4)


@pytest.mark.parametrize("height, width, factor", CASES)
def test_the_residual_is_the_folded_part_and_keeps_its_energy(height, width, factor):
    """Eqs. 7 and 8: A(w) sums the copies from outside the passband; in pixels, Parseval gives the same energy."""
    image = random_image(height, width)
    focused, residual = decompose(image, factor)
    outside = fft(image)
    outside[:, passband(height, factor)[:, None] & passband(width, factor)[None, :]] = 0
    folded = np.zeros((2, height // factor, width // factor, 3), complex)
    for y in range(height):
        for x in range(width):
            folded[:, y % (height // factor), x % (width // factor)] += outside[:, y, x] / factor**2
    np.testing.assert_allclose(fft(residual), folded, atol=1e-4)
    pixels = (height // factor) * (width // factor)
    downsampled = sample(image, factor)
    np.testing.assert_allclose(energy(focused - downsampled), energy(folded) / pixels, rtol=1e-4, atol=1e-8)


def test_one_dimensional_decimation_by_two():
    """Eq. 8 as printed: ||A||^2 = 1/4 ||X(w + pi)||^2 over the baseband; an odd new side has no bin at Nyquist."""
    side = 18
    row = np.random.default_rng(0).normal(size=side)
    image = jnp.asarray(np.broadcast_to(row[None, :, None, None], (1, side, side, 1)), jnp.float32)
    residual = np.asarray(decompose(image, 2)[1], np.float64)[0, :, 0, 0]
    spectrum = np.fft.fft(row)
    baseband = np.arange(-4, 5)  # cycles per side below side / 4
    np.testing.assert_allclose(energy(np.fft.fft(residual)), energy(spectrum[baseband + side // 2]) / 4, rtol=1e-5)


@pytest.mark.parametrize(("cycles", "alias"), [(0, None), (1, None), (3, None), (4, 4), (5, 3), (11, 3), (16, 0)])
def test_gratings_pass_below_the_nyquist_rate_and_fold_from_it_on(cycles, alias):
    """Side 32, factor 4: the new side is 8, its Nyquist rate 4 cycles per side."""
    image = grating(32, cycles)
    focused, residual = decompose(image, 4)
    silence = np.zeros((1, 8, 8, 1))
    expected = (grating(8, cycles), silence) if alias is None else (silence, grating(8, alias))
    np.testing.assert_allclose(focused, expected[0], atol=1e-5)
    np.testing.assert_allclose(residual, expected[1], atol=1e-5)


@pytest.mark.parametrize("height, width, factor", CASES)
def test_the_ideal_filter_is_an_orthogonal_projection(height, width, factor):
    image, other = random_image(height, width), random_image(height, width, seed=1)
    low = ideal_lowpass(image, factor)
    assert low.dtype == image.dtype
    np.testing.assert_allclose(ideal_lowpass(low, factor), low, atol=1e-5)
    np.testing.assert_allclose(energy(low) + energy(image - low), energy(image), rtol=1e-5)
    np.testing.assert_allclose(ideal_lowpass(image - 2 * other, factor),
                               low - 2 * ideal_lowpass(other, factor), atol=1e-5)
    np.testing.assert_allclose(low.mean((1, 2)), image.mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("function", [ideal_lowpass, fold])
def test_a_factor_that_does_not_divide_is_refused(function):
    with pytest.raises(ValueError, match="down-sampling factor 3 does not divide the image side"):
        function(random_image(9, 8), 3)


@pytest.mark.parametrize("n, side", [(16, 8), (18, 5), (15, 13), (12, 12), (9, 1)])
def test_cosines_below_the_nyquist_rate_of_a_view_pass_and_no_others(n, side):
    """Also where the view's side does not divide the image's: cosine k of n has k / (2 n) cycles per pixel."""
    x = (np.arange(n) + 0.5) / n
    waves = np.cos(np.pi * np.arange(n)[:, None] * x[None, :])  # (frequency, pixel)
    images = jnp.asarray(waves[:, :, None, None] * waves[n // 3][None, None, :, None], jnp.float32)
    passed = cosine_lowpass(images, side)
    below = (np.arange(n) < side) & (n // 3 < side)
    np.testing.assert_allclose(passed, np.where(below[:, None, None, None], images, 0), atol=1e-5)


def test_cosine_lowpass_is_a_projection_that_leaves_borders_alone():
    image = random_image(20, 20)
    low = cosine_lowpass(image, 7)
    np.testing.assert_allclose(cosine_lowpass(low, 7), low, atol=1e-5)
    np.testing.assert_allclose(float((low * (image - low)).sum()), 0, atol=1e-3)  # orthogonal: energies add up
    ramp = jnp.asarray(np.broadcast_to(np.linspace(-1, 1, 64)[None, :, None, None], (1, 64, 64, 1)), jnp.float32)
    # A ramp is smooth; as a periodic image it has a jump, whose spectrum is not small above the Nyquist rate.
    assert energy(ramp - cosine_lowpass(ramp, 16)) < 0.02 * energy(ramp - ideal_lowpass(ramp, 4))


def test_cosine_spectrum_keeps_energy_and_finds_its_cosine():
    image = random_image(12, 20)
    np.testing.assert_allclose(energy(cosine_spectrum(image)), energy(image), rtol=1e-5)
    wave = jnp.asarray(np.cos(np.pi * 3 * (np.arange(12) + 0.5) / 12)[None, :, None, None] * np.ones((1, 1, 20, 1)),
                       jnp.float32)
    found = np.asarray(cosine_spectrum(wave))[0, :, :, 0]
    assert np.unravel_index(np.abs(found).argmax(), found.shape) == (3, 0)
    np.testing.assert_allclose(found[3, 0] ** 2, energy(wave), rtol=1e-5)


def test_a_lowpass_for_more_pixels_than_there_are_is_refused():
    with pytest.raises(ValueError, match="a lowpass for side 9 of an image 8x8; give at most"):
        cosine_lowpass(random_image(8, 8), 9)
