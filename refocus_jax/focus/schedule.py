"""Schedules from blurred to sharp: PSF radii and noise for each scale, and the usual grid sizes of token maps."""

from collections.abc import Sequence

import numpy as np

# Sides of the token maps, coarse to fine. `var10` is what VAR uses at 256 px, `k4` the paper's K = 4 (section 4.2).
GRID_SIZES = {
    "k4": (2, 4, 8, 16),
    "var10": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "var10_512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "var14_1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
AIRY = 1.22  # a disk of radius 1.22 s has its first null at 1 / (2 s), the Nyquist rate after down-sampling by s


def radii(num_scales: int, rho_max: float, schedule: str = "cosine",
          downsample_factors: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """PSF radii of all scales, in pixels of the full-size image, decreasing to exactly 0.

    Args:
      num_scales: Number of scales K, at least 2.
      rho_max: Radius at the coarsest scale, for `cosine`; `nyquist` ignores it.
      schedule: `cosine` is Eq. 2 with the sign that its text asks for: rho_max (1 + cos(pi k / (K - 1))) / 2 for
        k = 0 ... K - 1. `nyquist` puts the first null of each disk at the Nyquist rate of its view (rho = 1.22 s).
      downsample_factors: Image side / view side for each scale; `nyquist` needs it.

    Returns:
      The radii, (K,) float64.

    Raises:
      ValueError: There are fewer than two scales, rho_max is not a positive number, the schedule is unknown, or the
        number of factors is wrong.
    """
    if num_scales < 2:
        raise ValueError(f"num_scales is {num_scales}; a focus pyramid needs at least 2 grid_sizes")
    if schedule == "cosine":
        if not (np.isfinite(rho_max) and rho_max > 0):
            raise ValueError(f"focus.rho_max is {rho_max}; give a radius > 0 in pixels (psf='none' switches blur off)")
        values = rho_max * (1 + np.cos(np.pi * np.arange(num_scales) / (num_scales - 1))) / 2
    elif schedule == "nyquist":
        if downsample_factors is None or len(downsample_factors) != num_scales:
            raise ValueError("schedule 'nyquist' needs downsample_factors, one per scale")
        values = AIRY * np.asarray(downsample_factors, np.float64)
    else:
        raise ValueError(f"focus.schedule is {schedule!r}; choose 'cosine' or 'nyquist'")
    values[-1] = 0.0
    return values


def noise_stds(num_scales: int, first: float = 1e-3, last: float = 1e-2) -> np.ndarray:
    """Standard deviation beta_k (Eq. 3) of the noise on each focused view, linear over the scales (section 4.2)."""
    return np.linspace(first, last, num_scales)
