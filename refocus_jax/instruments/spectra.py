"""Radially averaged power spectra of sets of images, with confidence intervals."""

from collections.abc import Iterable, Mapping

import numpy as np

from refocus_jax.evaluation import metrics
from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.instruments.patterns import luminance


def ring_means(values_hw: np.ndarray, radius_hw: np.ndarray, num_rings: int) -> np.ndarray:
    """Average over rings of radius 1 ... num_rings, which extend half a unit to both sides.

    Args:
      values_hw: Values (h, w).
      radius_hw: Radius of each value.
      num_rings: Number of rings.

    Returns:
      Means (num_rings,).
    """
    ring = np.rint(radius_hw).astype(int)
    inside = (ring >= 1) & (ring <= num_rings)
    sums = np.bincount(ring[inside], values_hw[inside], minlength=num_rings + 1)
    return sums[1:] / np.bincount(ring[inside], minlength=num_rings + 1)[1:]


def radial_power(image_hwc: np.ndarray) -> np.ndarray:
    """Compute the power spectrum of an RGB image's luminance under a Hann window.

    Args:
      image_hwc: Image, uint8 (side, side, 3).

    Returns:
      Power (side // 2,), float64, at 1 ... side / 2 cycles per image. White noise of variance v, on the scale of
      [-1, 1], has power v everywhere except at one cycle per image, where removing the mean takes a part of it.
    """
    side = len(image_hwc)
    window = np.outer(*[np.hanning(side + 1)[:-1]] * 2)
    values = luminance(image_hwc) / 127.5
    values = values - np.average(values, weights=window)
    power = np.abs(np.fft.fft2(values * window)) ** 2 / np.square(window).sum()
    cycles = np.fft.fftfreq(side) * side
    return ring_means(power, np.hypot(cycles[:, None], cycles[None, :]), side // 2)


def measure(images: Iterable[np.ndarray], name: str) -> np.ndarray:
    """Compute `radial_power` of each image.

    Args:
      images: Images, uint8 (side, side, 3).
      name: Name of the set in error messages.

    Returns:
      Powers (n, side // 2).

    Raises:
      ValueError: If the images are not all square and of one size, or if there are fewer than two.
    """
    powers, shape = [], None
    for image in images:
        shape = shape or image.shape
        if image.shape != shape or shape[0] != shape[1]:
            raise ValueError(f"{name} has images of {image.shape[1]}x{image.shape[0]} and {shape[1]}x{shape[0]} "
                             "pixels; give square images of one size")
        powers.append(radial_power(image))
    if len(powers) < 2:
        raise ValueError(f"{name} has {len(powers)} images, too few for an interval; give two or more")
    return np.stack(powers)


def chart(powers: Mapping[str, np.ndarray]) -> Chart:
    """Draw mean spectra with 95 % intervals over images, by name of the set."""
    lines = []
    for name, values in powers.items():
        means = metrics.bootstrap_means(values)
        low, high = np.percentile(means, [2.5, 97.5], axis=0)
        frequency = np.arange(1, values.shape[1] + 1) / (2 * values.shape[1])
        lines.append(Line(f"{name} (n = {len(values)})", frequency.tolist(), values.mean(axis=0).tolist(),
                          low.tolist(), high.tolist()))
    return Chart("power spectrum", "cycles per pixel", "power of luminance", lines, log_x=True, log_y=True,
                 note="Averaged over directions and images, under a Hann window. Bands are 95 % intervals by bootstrap "
                      "over images.")


def table(powers: Mapping[str, np.ndarray], reference: str) -> Table:
    """Make a table of the power relative to the reference set, per octave of frequency.

    Args:
      powers: Powers (n, rings) by name of the set.
      reference: Name of the reference set.

    Returns:
      The table, with 95 % intervals over the images of both sets.
    """
    rings = powers[reference].shape[1]
    edges = [rings // 2**i for i in range(rings.bit_length())]  # edges of octaves, downwards from the Nyquist rate
    octaves = [slice(low, high) for high, low in zip(edges, [*edges[1:], 0], strict=True) if high > low]
    rows = []
    for name, values in powers.items():
        if name == reference:
            continue
        row = [name]
        for octave in octaves:
            ours, theirs = values[:, octave].sum(axis=1), powers[reference][:, octave].sum(axis=1)
            ratios = metrics.bootstrap_means(ours, seed=1) / metrics.bootstrap_means(theirs)
            low, high = np.percentile(ratios, [2.5, 97.5])
            row.append(f"{ours.mean() / theirs.mean():.3g} ({low:.3g} to {high:.3g})")
        rows.append(row)
    columns = ["images", *(f"{(o.start + 1) / (2 * rings):.3g} to {o.stop / (2 * rings):.3g}" for o in octaves)]
    return Table(f"power of luminance over that of {reference}, by cycles per pixel", columns, rows,
                 "1 means the same power as the data; in brackets is the 95 % interval by bootstrap over the images of "
                 "both sets.")
