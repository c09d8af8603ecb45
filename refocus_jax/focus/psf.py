"""Point-spread functions (PSFs) and the blur that applies them.

The kernels sum to one and are continuous in their radius.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.focus import resample

PSFS = ("disk", "gaussian", "none")
# "auto" means "matrices", which is faster on CPUs, TPUs and GPUs (docs/measurements/speed.md).
IMPLEMENTATIONS = ("auto", "matrices", "convolution")


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"PSF radius is {radius}; give a finite radius >= 0 in pixels")


def _quadrant_area(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Area of the disk inside [0, x] x [0, y].

    It is odd in x and in y, so that the area in any rectangle is a sum of differences.
    """
    sign = np.sign(x) * np.sign(y)
    x, y = np.minimum(np.abs(x), radius), np.minimum(np.abs(y), radius)
    # Up to `corner` the rectangle's top edge is inside the disk. The maximum guards against a negative root, because
    # the squares of numpy and of Python may differ in the last bit.
    corner = np.minimum(x, np.sqrt(np.maximum(radius**2 - y**2, 0)))

    def under_arc(t):
        return 0.5 * (t * np.sqrt(np.maximum(radius**2 - t**2, 0)) + radius**2 * np.arcsin(t / radius))

    return sign * (y * corner + under_arc(x) - under_arc(corner))


@functools.lru_cache(maxsize=256)
def disk_kernel(radius: float) -> np.ndarray:
    """Defocus PSF of a circular aperture: each tap is the exact area of the disk inside that pixel.

    Args:
      radius: Radius of the disk in pixels, >= 0.

    Returns:
      The kernel, (n, n) float32 with n odd, which sums to one. It tends to a delta as the radius tends to zero, and
      for radius 0 it is [[1]]. The first null of its spectrum lies at 0.61 / radius cycles per pixel.
    """
    _check_radius(radius)
    half = max(0, math.ceil(radius - 0.5))
    if half == 0:
        return np.ones((1, 1), np.float32)
    edges = np.arange(-half, half + 2) - 0.5
    cumulative = _quadrant_area(edges[None, :], edges[:, None], radius)
    kernel = np.diff(np.diff(cumulative, axis=0), axis=1)
    return (kernel / kernel.sum()).astype(np.float32)


@functools.lru_cache(maxsize=256)
def gaussian_kernel(radius: float) -> np.ndarray:
    """Gaussian PSF, integrated over pixels.

    Args:
      radius: Radius in pixels of the disk with the same second moment, >= 0: sigma is radius / 2.

    Returns:
      The kernel, (n, n) float32 with n odd, which sums to one. For radius 0 it is [[1]].
    """
    _check_radius(radius)
    half = math.ceil(2 * radius)  # four sigma
    if half == 0:
        return np.ones((1, 1), np.float32)
    edges = np.arange(-half, half + 2) - 0.5
    taps = np.diff([math.erf(e / (radius / 2 * math.sqrt(2))) for e in edges])
    kernel = np.outer(taps, taps)
    return (kernel / kernel.sum()).astype(np.float32)


def _kernel(psf: str, radius: float) -> np.ndarray:
    return (disk_kernel if psf == "disk" else gaussian_kernel)(radius)


@functools.lru_cache(maxsize=256)
def _separated(psf: str, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Writes a PSF as a sum of outer products of its eigenvectors, exact to float32.

    Returns:
      The coefficients (r,) and the taps (r, n), both float64. r is at most (n + 1) / 2, since kernels look the same
      from all four sides, and 1 for a Gaussian.
    """
    values, vectors = np.linalg.eigh(_kernel(psf, radius).astype(np.float64))
    counts = np.abs(values) > 1e-8 * np.abs(values).max()
    return values[counts], vectors.T[counts]


def _convolutions(taps: np.ndarray, side: int) -> np.ndarray:
    """Matrices (r, side, side) that convolve a row of samples with the taps (r, n), n odd, reflected at the borders."""
    half = taps.shape[1] // 2
    reflected = np.pad(np.arange(side), half, mode="reflect")
    matrices, rows = np.zeros((len(taps), side, side)), np.arange(side)
    for offset in range(taps.shape[1]):
        matrices[:, rows, reflected[offset:offset + side]] += taps[:, offset, None]
    return matrices


def blur(image_bhwc: jax.Array, psf: str, radius: float, side: int | None = None, downsample: str = "bilinear",
         implementation: str = "auto") -> jax.Array:
    """Blurs each channel with a PSF, with reflected borders, and resamples the result if asked to.

    Both steps are linear.

    Args:
      image_bhwc: Images, (b, h, w, c).
      psf: One of `PSFS`.
      radius: Radius of the PSF in pixels. Radius 0 does not blur.
      side: Side to resample to after the blur (see `resample.resize`); None keeps the size.
      downsample: Resampling operator, one of `resample.MATRICES`.
      implementation: "convolution" uses the convolution of `jax.lax` on single channels. "matrices" does blur and
        reduction at once, as a short sum of separable matrices. The two agree up to float32 rounding. "auto" means
        "matrices".

    Returns:
      The blurred images. Without blur and `side` they are the input itself.

    Raises:
      ValueError: The PSF or the implementation is unknown, or the PSF is too large for the reflection of the image.
    """
    if psf not in PSFS:
        raise ValueError(f"focus.psf is {psf!r}; choose one of {PSFS}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"focus.implementation is {implementation!r}; choose one of {IMPLEMENTATIONS}")
    if psf == "none" or radius == 0:
        return image_bhwc if side is None else resample.resize(image_bhwc, side, downsample)
    (height, width), half = image_bhwc.shape[1:3], _kernel(psf, radius).shape[0] // 2
    if half >= min(height, width):
        raise ValueError(f"a {psf} PSF of radius {radius:.3g} px needs an image side above {half} px, not "
                         f"{height}x{width}; lower focus.rho_max, or take focus.schedule 'cosine'")
    if implementation == "convolution":
        blurred = _convolve(image_bhwc, _kernel(psf, radius))
        return blurred if side is None else resample.resize(blurred, side, downsample)
    coefficients, taps = _separated(psf, radius)
    vertical, horizontal = (_convolutions(taps, n) for n in (height, width))
    if side is not None:
        vertical, horizontal = (resample.MATRICES[downsample](n, side) @ m
                                for n, m in ((height, vertical), (width, horizontal)))
    return resample.sum_of_separable(image_bhwc, jnp.asarray(coefficients[:, None, None] * vertical, jnp.float32),
                                     jnp.asarray(horizontal, jnp.float32))


def _convolve(image_bhwc: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Convolves each channel with a kernel (n, n), n odd, with reflected borders.

    Channels are treated as separate images of one channel.
    """
    (b, h, w, c), half = image_bhwc.shape, kernel.shape[0] // 2
    planes = jnp.moveaxis(image_bhwc, -1, 1).reshape(b * c, h, w, 1)
    planes = jnp.pad(planes, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    planes = jax.lax.conv_general_dilated(
        planes, jnp.asarray(kernel)[:, :, None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(planes.reshape(b, c, h, w), 1, -1)
