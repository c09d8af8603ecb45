"""Resampling with constant matrices: every operator here is linear, separable and exact in float32.

A matrix has shape (m, n) and maps n samples to m samples. Its rows sum to one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

CUBIC_A = -0.75  # the Keys coefficient of PyTorch's bicubic operator, which VAR uses; jax.image.resize uses -0.5


@functools.cache
def area_matrix(n: int, m: int) -> np.ndarray:
    """Adaptive average pooling: bin i is the mean over samples floor(i n / m) ... ceil((i + 1) n / m)."""
    matrix = np.zeros((m, n), np.float32)
    for i in range(m):
        start, stop = (i * n) // m, -((-(i + 1) * n) // m)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


def _interpolation_matrix(n: int, m: int, weight, support: int) -> np.ndarray:
    """Interpolation with half-pixel centres, clamped borders and no anti-aliasing.

    `weight(distance)` is the interpolation kernel, with the distance in samples; it is zero beyond `support`.
    """
    matrix = np.zeros((m, n))
    for i in range(m):
        centre = (i + 0.5) * n / m - 0.5
        first = int(np.floor(centre)) - support + 1
        for tap in range(first, first + 2 * support):
            matrix[i, min(max(tap, 0), n - 1)] += weight(abs(centre - tap))
    return matrix.astype(np.float32)


@functools.cache
def bilinear_matrix(n: int, m: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres. Down-sampling with it aliases."""
    return _interpolation_matrix(n, m, lambda t: max(0.0, 1.0 - t), support=1)


@functools.cache
def bicubic_matrix(n: int, m: int) -> np.ndarray:
    """Keys' bicubic interpolation as in PyTorch: A = -0.75, half-pixel centres, clamped borders, no anti-aliasing."""

    def weight(t: float) -> float:
        if t <= 1:
            return (CUBIC_A + 2) * t**3 - (CUBIC_A + 3) * t**2 + 1
        if t < 2:
            return CUBIC_A * (t**3 - 5 * t**2 + 8 * t - 4)
        return 0.0

    return _interpolation_matrix(n, m, weight, support=2)


@functools.cache
def stride_matrix(n: int, m: int) -> np.ndarray:
    """Point sampling at samples floor(i n / m): the decimation of the paper's Eq. 6."""
    matrix = np.zeros((m, n), np.float32)
    matrix[np.arange(m), (np.arange(m) * n) // m] = 1.0
    return matrix


MATRICES = {"area": area_matrix, "bilinear": bilinear_matrix, "bicubic": bicubic_matrix, "stride": stride_matrix}


def separable(image_bhwc: jax.Array, vertical: jax.Array | None, horizontal: jax.Array | None) -> jax.Array:
    """Applies one matrix along the height and one along the width; None leaves that axis unchanged.

    The products run in float32 at the highest precision, because TF32 or bfloat16 would change tokens.
    """
    if vertical is not None:
        image_bhwc = jnp.einsum("yh,bhwc->bywc", vertical, image_bhwc, precision=jax.lax.Precision.HIGHEST)
    if horizontal is not None:
        image_bhwc = jnp.einsum("xw,bhwc->bhxc", horizontal, image_bhwc, precision=jax.lax.Precision.HIGHEST)
    return image_bhwc


def sum_of_separable(image_bhwc: jax.Array, vertical_ryh: jax.Array, horizontal_rxw: jax.Array) -> jax.Array:
    """Sums the results of `separable` over r, with the r-th matrix of each stack."""
    rows = jnp.einsum("ryh,bhwc->brywc", vertical_ryh, image_bhwc, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("rxw,brywc->byxc", horizontal_rxw, rows, precision=jax.lax.Precision.HIGHEST)


def resize(image_bhwc: jax.Array, side: int | tuple[int, int], operator: str) -> jax.Array:
    """Resamples the two spatial axes.

    Args:
      image_bhwc: Images, (b, h, w, c).
      side: New height and width, or one number for both. If nothing changes, the input itself is returned.
      operator: One of `MATRICES`.

    Returns:
      The resampled images.

    Raises:
      ValueError: The operator is unknown.
    """
    if operator not in MATRICES:
        raise ValueError(f"resampling operator {operator!r} is unknown; choose one of {sorted(MATRICES)}")
    sides = (side, side) if isinstance(side, int) else side
    matrices = (None if new == old else jnp.asarray(MATRICES[operator](old, new))
                for old, new in zip(image_bhwc.shape[1:3], sides, strict=True))
    return separable(image_bhwc, *matrices)
