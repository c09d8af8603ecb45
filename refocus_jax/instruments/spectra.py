"""Radially averaged power spectra of sets of images, with intervals."""

from collections.abc import Iterable, Mapping

import numpy as np

from refocus_jax.evaluation import metrics
from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.instruments.patterns import luminance


def ring_means(values_hw: np.ndarray, radius_hw: np.ndarray, num_rings: int) -> np.ndarray:
    """Means over the rings of radius 1 ... num_rings, each half a unit wide to both sides: (num_rings,)."""
    ring = np.rint(radius_hw).astype(int)
    inside = (ring >= 1) & (ring <= num_rings)
    sums = np.bincount(ring[inside], values_hw[inside], minlength=num_rings + 1)
    return sums[1:] / np.bincount(ring[inside], minlength=num_rings + 1)[1:]


def radial_power(image_hwc: np.ndarray) -> np.ndarray:
    """Power spectrum of an RGB image's luminance over 1 ... side / 2 cycles per image, under a Hann window.

    Args:
      image_hwc: uint8 (side, side, 3).

    Returns:
      (side // 2,) float64. White noise of variance v, on the scale of [-1, 1], has v everywhere but at one cycle
      per image, a part of which goes with the mean.
    """
    side = len(image_hwc)
    window = np.outer(*[np.hanning(side + 1)[:-1]] * 2)
    values = luminance(image_hwc) / 127.5
    values = values - np.average(values, weights=window)
    power = np.abs(np.fft.fft2(values * window)) ** 2 / np.square(window).sum()
    cycles = np.fft.fftfreq(side) * side
    return ring_means(power, np.hypot(cycles[:, None], cycles[None, :]), side // 2)


def measure(images: Iterable[np.ndarray], name: str) -> np.ndarray:
    """`radial_power` of each image, (n, side // 2).

    Raises:
      ValueError: the images are not all square and of one size, or fewer than two.
    """
    powers, shape = [], None
    for image in images:
        shape = shape or image.shape
        if image.shape != shape or shape[0] != shape[1]:
            raise ValueError(f"{name} has images of {image.shape[1]}x{image.shape[0]} and {shape[1]}x{shape[0]} "
                             "pixels; give square images of one size")
        powers.append(radial_power(image))
    if len(powers) < 2:
        raise ValueError(f"{name} has {len(powers)} images; an interval needs two or more")
    return np.stack(powers)


def chart(powers: Mapping[str, np.ndarray]) -> Chart:
    """Mean spectra with 95 % intervals over images, by name of the set."""
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
    """Power in relation to the reference set's, per octave of frequency, with 95 % intervals over both sets' images."""
    rings = powers[reference].shape[1]
    edges = [rings // 2**i for i in range(rings.bit_length())]  # of octaves, downwards from the Nyquist rate
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
                 "1 is as much as the data have; in brackets the 95 % interval by bootstrap over the images of both "
                 "sets.")
