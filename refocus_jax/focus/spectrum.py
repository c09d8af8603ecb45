"""Down-sampling in the frequency domain (section 3.4): ideal anti-aliasing filters and spectral folding.

`passband`, `ideal_lowpass` and `fold` treat images as periodic, as Eqs. 6-8 do: they use `fft2` over the two spatial
axes. The periodic filter is the fourth PSF of the design. It rings in space, so tests use it, but no training views
are made with it.

`cosine_lowpass` is for measurements on real images. A periodic image jumps from its right border to its left one, and
the spectrum of that jump would be mistaken for detail above the Nyquist rate. The cosine transform is the spectrum of
the image mirrored at its borders, as views see it, which has no jump. It also works with any factor: of n cosines with
frequencies 0, 1/2n, 2/2n, ... cycles per pixel, exactly the first m lie below the Nyquist rate m/2n of m samples,
whether or not m divides n.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus.resample import separable


def passband(side: int, factor: int) -> np.ndarray:
    """Marks the frequencies of `fft` strictly below the Nyquist rate of a grid that is `factor` times coarser.

    Args:
      side: Number of samples.
      factor: Down-sampling factor, a divisor of `side`.

    Returns:
      A mask, (side,) bool.

    Raises:
      ValueError: `factor` does not divide `side`.
    """
    if side % factor:
        raise ValueError(f"down-sampling factor {factor} does not divide the image side {side}")
    return np.abs(np.rint(np.fft.fftfreq(side) * side)) < side / factor / 2


def ideal_lowpass(image_bhwc: jax.Array, factor: int) -> jax.Array:
    """Keeps the frequencies strictly below the Nyquist rate of a grid `factor` times coarser (H_k of section 3.4).

    The filter is linear and idempotent. `image - ideal_lowpass(image, factor)` is the part that down-sampling by
    `factor` folds into the baseband.
    """
    keep_h, keep_w = (jnp.asarray(passband(n, factor)) for n in image_bhwc.shape[1:3])
    spectrum = jnp.fft.fft2(image_bhwc, axes=(1, 2))
    spectrum = spectrum * (keep_h[:, None] & keep_w[None, :])[None, :, :, None]
    return jnp.fft.ifft2(spectrum, axes=(1, 2)).real.astype(image_bhwc.dtype)


def fold(spectrum_bhwc: jax.Array, factor: int) -> jax.Array:
    """Spectrum of the image point-sampled by `factor` (Eq. 6 in two dimensions, for any integer factor).

    It is the mean of the factor^2 shifted copies of the spectrum.
    """
    b, h, w, c = spectrum_bhwc.shape
    if h % factor or w % factor:
        raise ValueError(f"down-sampling factor {factor} does not divide the image sides {h}x{w}")
    copies = spectrum_bhwc.reshape(b, factor, h // factor, factor, w // factor, c)
    return copies.mean(axis=(1, 3))


@functools.cache
def cosine_matrix(side: int) -> np.ndarray:
    """Matrix of the orthonormal DCT-II, (side, side) float64: row k is the cosine of k / (2 side) cycles per pixel."""
    k, i = np.arange(side)[:, None], np.arange(side)[None, :]
    matrix = np.sqrt(2 / side) * np.cos(np.pi * k * (i + 0.5) / side)
    matrix[0] /= np.sqrt(2)
    return matrix


def cosine_spectrum(image_bhwc: jax.Array) -> jax.Array:
    """Coefficients of the orthonormal DCT-II in both axes, with the shape and the energy of the image."""
    vertical, horizontal = (jnp.asarray(cosine_matrix(n), jnp.float32) for n in image_bhwc.shape[1:3])
    return separable(image_bhwc, vertical, horizontal)


def cosine_lowpass(image_bhwc: jax.Array, side: int) -> jax.Array:
    """The part of an image that side x side samples can hold: the cosines below their Nyquist rate in both axes.

    The filter is linear and idempotent. `image - cosine_lowpass(image, side)` is the part that a view of that side can
    show only as aliases.

    Args:
      image_bhwc: Images, (b, h, w, c).
      side: Side of the sample grid, at most the smaller side of the image.

    Returns:
      The filtered images, with unchanged shape.

    Raises:
      ValueError: `side` is larger than the image.
    """
    if side > min(image_bhwc.shape[1:3]):
        raise ValueError(f"a lowpass for side {side} of an image {image_bhwc.shape[1]}x{image_bhwc.shape[2]}; give at "
                         "most the image's side")
    vertical, horizontal = (_projection(n, side) for n in image_bhwc.shape[1:3])
    return separable(image_bhwc, jnp.asarray(vertical), jnp.asarray(horizontal))


@functools.cache
def _projection(n: int, side: int) -> np.ndarray:
    low = cosine_matrix(n)[:side]
    return (low.T @ low).astype(np.float32)
