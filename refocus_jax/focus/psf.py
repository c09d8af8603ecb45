"""Point-spread functions: kernels that sum to one, continuous in their radius, and the blur that applies them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

PSFS = ("disk", "gaussian", "none")


def _check_radius(radius: float) -> None:
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"PSF radius is {radius}; give a finite radius >= 0 in pixels")


def _quadrant_area(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Area of the disk inside [0, x] x [0, y], odd in x and in y, so that differences give any rectangle."""
    sign = np.sign(x) * np.sign(y)
    x, y = np.minimum(np.abs(x), radius), np.minimum(np.abs(y), radius)
    # Up to here the rectangle's top edge is inside the disk. (numpy's square and Python's may differ in the last bit.)
    corner = np.minimum(x, np.sqrt(np.maximum(radius**2 - y**2, 0)))

    def under_arc(t):
        return 0.5 * (t * np.sqrt(np.maximum(radius**2 - t**2, 0)) + radius**2 * np.arcsin(t / radius))

    return sign * (y * corner + under_arc(x) - under_arc(corner))


@functools.lru_cache(maxsize=256)
def disk_kernel(radius: float) -> np.ndarray:
    """Defocus PSF of a circular aperture: each tap is the exact area of the disk inside that pixel.

    Args:
      radius: of the disk, in pixels, >= 0.

    Returns:
      (n, n) float32, n odd, sums to one. It tends to a delta as the radius tends to zero, and at 0 it is [[1]].
      The first null of its spectrum lies at 0.61 / radius cycles per pixel.
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
    """Gaussian with the second moment of the disk of that radius (sigma = radius / 2), integrated over pixels."""
    _check_radius(radius)
    half = math.ceil(2 * radius)  # four sigma
    if half == 0:
        return np.ones((1, 1), np.float32)
    edges = np.arange(-half, half + 2) - 0.5
    taps = np.diff([math.erf(e / (radius / 2 * math.sqrt(2))) for e in edges])
    kernel = np.outer(taps, taps)
    return (kernel / kernel.sum()).astype(np.float32)


def blur(image_bhwc: jax.Array, psf: str, radius: float) -> jax.Array:
    """Convolves each channel with the PSF of `radius` pixels, borders reflected; radius 0 returns the input itself.

    Raises:
      ValueError: the PSF is unknown, or its support does not fit into the image's reflection.
    """
    if psf not in PSFS:
        raise ValueError(f"focus.psf is {psf!r}; choose one of {PSFS}")
    if psf == "none" or radius == 0:
        return image_bhwc
    kernel = disk_kernel(radius) if psf == "disk" else gaussian_kernel(radius)
    half = kernel.shape[0] // 2
    if half == 0:
        return image_bhwc
    b, h, w, c = image_bhwc.shape
    if half >= min(h, w):
        raise ValueError(f"a {psf} PSF of radius {radius:.3g} px needs an image side above {half} px, not {h}x{w}; "
                         "lower focus.rho_max, or take focus.schedule 'cosine'")
    # One-channel images in the batch axis: XLA's depthwise convolution is many times slower on CPU.
    planes = jnp.moveaxis(image_bhwc, -1, 1).reshape(b * c, h, w, 1)
    planes = jnp.pad(planes, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    planes = jax.lax.conv_general_dilated(
        planes, jnp.asarray(kernel)[:, :, None, None], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(planes.reshape(b, c, h, w), 1, -1)
