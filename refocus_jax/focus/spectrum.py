"""The frequency side of down-sampling (section 3.4): the ideal anti-aliasing filter and spectral folding.

Spectra are those of periodic images: `fft2` over the two spatial axes. The ideal filter is the fourth PSF of the
design; it rings in space, so it serves to test Eqs. 6-8 and to measure aliasing, not to make views for training.
"""

import jax
import jax.numpy as jnp
import numpy as np


def passband(side: int, factor: int) -> np.ndarray:
    """(side,) bool: the frequencies of `fft` strictly below the Nyquist rate of a grid `factor` times coarser.

    Raises:
      ValueError: `factor` does not divide `side`.
    """
    if side % factor:
        raise ValueError(f"down-sampling factor {factor} does not divide the image side {side}")
    return np.abs(np.rint(np.fft.fftfreq(side) * side)) < side / factor / 2


def ideal_lowpass(image_bhwc: jax.Array, factor: int) -> jax.Array:
    """Keeps what lies strictly below the Nyquist rate of the grid that is `factor` times coarser (H_k of section 3.4).

    Linear and idempotent; `image - ideal_lowpass(image)` is what down-sampling by `factor` folds into the baseband.
    """
    keep_h, keep_w = (jnp.asarray(passband(n, factor)) for n in image_bhwc.shape[1:3])
    spectrum = jnp.fft.fft2(image_bhwc, axes=(1, 2))
    spectrum = spectrum * (keep_h[:, None] & keep_w[None, :])[None, :, :, None]
    return jnp.fft.ifft2(spectrum, axes=(1, 2)).real.astype(image_bhwc.dtype)


def fold(spectrum_bhwc: jax.Array, factor: int) -> jax.Array:
    """Spectrum of the image point-sampled by `factor` (Eq. 6 in two dimensions, for any integer factor).

    Sums the factor^2 shifted copies of the spectrum, divided by their number.
    """
    b, h, w, c = spectrum_bhwc.shape
    if h % factor or w % factor:
        raise ValueError(f"down-sampling factor {factor} does not divide the image sides {h}x{w}")
    copies = spectrum_bhwc.reshape(b, factor, h // factor, factor, w // factor, c)
    return copies.mean(axis=(1, 3))
