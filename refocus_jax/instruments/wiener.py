"""Wiener gains of views and residuals, measured from images, to compare with the learned gates of a teacher."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.focus import Pyramid
from refocus_jax.focus.spectrum import cosine_spectrum
from refocus_jax.instruments.spectra import ring_means
from refocus_jax.instruments.views import split

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Gain(NamedTuple):
    """The Wiener gain S_xx / (S_xx + S_nn) of one scale.

    S_xx comes from frequencies that the pixels can represent, and S_nn from aliases.

    Attributes:
      frequencies: Frequencies (n,) in cycles per pixel of the view, up to 1/2.
      gain: Gain (n,) of spectra averaged over directions and images; NaN where both are 0.
      total: Gain of the energies summed over all frequencies.
    """

    frequencies: np.ndarray
    gain: np.ndarray
    total: float


class ScaleGains(NamedTuple):
    """The Wiener gains of one scale.

    Attributes:
      view: Gain of D: the factor for a down-sampled view as an estimate of the signal.
      residual: Gain of A: the factor with which to add A to L in order to restore the signal that the blur has removed.
    """

    view: Gain
    residual: Gain


@functools.partial(jax.jit, static_argnums=0)
def _spectra(pyramid: Pyramid, image_bhwc: jax.Array) -> list[list[jax.Array]]:
    """Compute energy spectra per scale, each (m, m): D(x_in), D(x_out), A(x_in), A(x_out)."""
    result = []
    for scale, grid in enumerate(pyramid.grid_sizes[:-1]):
        inside, outside = (pyramid.view(part, scale) for part in split(image_bhwc, pyramid.stride * grid))
        result.append([jnp.square(cosine_spectrum(part)).mean(axis=(0, 3)) for part in (
            inside.downsampled, outside.downsampled, inside.residual, outside.residual)])
    return result


def gains(pyramid: Pyramid, images: Iterable[np.ndarray]) -> list[ScaleGains]:
    """Measure Wiener gains of the views and residuals of all scales except the last, which has no aliases.

    Args:
      pyramid: The pyramid of views.
      images: Images (h, w, c) in [-1, 1], at least one.

    Returns:
      The gains per scale.
    """
    total: Any = None
    for image in images:
        found = jax.tree.map(lambda a: np.asarray(a, np.float64),
                             jax.device_get(_spectra(pyramid, jnp.asarray(image, jnp.float32)[None])))
        total = found if total is None else jax.tree.map(np.add, total, found)
    return [ScaleGains(_gain(*spectra[:2]), _gain(*spectra[2:])) for spectra in total]


def _gain(signal: np.ndarray, noise: np.ndarray) -> Gain:
    side = len(signal)
    radius = np.hypot(np.arange(side)[:, None], np.arange(side)[None, :])
    s, n = (ring_means(values, radius, side - 1) for values in (signal, noise))
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is blurred and the residual is 0
        return Gain(np.arange(1, side) / (2 * side), s / (s + n), float(signal.sum() / (signal.sum() + noise.sum())))


class Gates(NamedTuple):
    """Statistics of gates over held-out tokens, (blocks, taught scales, channels).

    Attributes:
      mean: Mean over the tokens of a scale.
      deviation: Standard deviation over the tokens of a scale.
    """

    mean: np.ndarray
    deviation: np.ndarray


def gates(alpha_mbld: np.ndarray, offsets: Sequence[int]) -> Gates:
    """Compute statistics per scale of gates.

    Args:
      alpha_mbld: Gates (blocks, images, tokens, channels).
      offsets: Offsets of the taught scales among the tokens, and the total number of tokens.

    Returns:
      The statistics.
    """
    parts = [np.asarray(alpha_mbld[:, :, a:b], np.float64) for a, b in itertools.pairwise(offsets)]
    return Gates(np.stack([part.mean(axis=(1, 2)) for part in parts], axis=1),
                 np.stack([part.std(axis=(1, 2)) for part in parts], axis=1))


_COLUMNS = ("For gates: mean over channels and tokens, quantiles over the channels, and the standard deviation over "
            "tokens within a channel. For Wiener gains: the gains of the last view that the scale sees. ")
_CANNOT = ("The channels of a gate are channels of the transformer, not frequencies, and the factor that a gate "
           "multiplies has a learned scale of its own: a gate of 0.5 is equivalent to a gate of 1 with half the "
           "weights. So the level of a gate cannot be compared with a Wiener gain. The change of a gate from scale to "
           "scale can be compared, because both scales share these weights.")


def gain_tables_and_charts(found: Sequence[ScaleGains], grid_sizes: Sequence[int]) -> tuple[list[Table], list[Chart]]:
    """Make a table of Wiener gains by scale, and charts by frequency.

    Args:
      found: The gains of all scales except the last.
      grid_sizes: Grid sizes p_k of all scales.

    Returns:
      The tables and the charts.
    """
    rows = [[f"p = {p}", *(None if np.isnan(gain.total) else round(gain.total, 4) for gain in scale)]
            for p, scale in zip(grid_sizes[:-1], found, strict=True)]
    table = Table("Wiener gains of this run's views", ["scale", "down-sampled view D", "residual A"], rows,
                  "S_xx / (S_xx + S_nn), energies over all frequencies except 0. For D: signal against aliases. For A: "
                  "the signal that the blur has removed against the aliases that it has removed. A dash means that "
                  "nothing is blurred.")
    charts = []
    for i, name in enumerate(("down-sampled view D", "residual A")):
        lines = [Line(f"p = {p}", scale[i].frequencies.tolist(), scale[i].gain.tolist())
                 for p, scale in zip(grid_sizes[:-1], found, strict=True)
                 if len(scale[i].gain) and not np.isnan(scale[i].gain).any()]
        if lines:
            charts.append(Chart(f"Wiener gain of the {name}", "cycles per pixel of the view", "S_xx / (S_xx + S_nn)",
                                lines, note="Spectra averaged over directions and images."))
    return [table], charts


def gate_tables_and_charts(found: Gates, wiener: Sequence[ScaleGains], grid_sizes: Sequence[int]
                           ) -> tuple[list[Table], list[Chart]]:
    """Make tables and a chart of gates over channels, with the Wiener gains of the views that they weight.

    A query of scale k reads alias tokens of the scales before k, so its gates are listed next to the gains of scale
    k - 1.

    Args:
      found: Statistics of the gates.
      wiener: Gains of all scales except the last.
      grid_sizes: Grid sizes p_k of all scales.

    Returns:
      The tables and the charts.
    """
    blocks, scales, _ = found.mean.shape
    taught = range(len(grid_sizes) - scales, len(grid_sizes))
    rows = []
    for block in range(blocks):
        for i, scale in enumerate(taught):
            values, evidence = found.mean[block, i], wiener[scale - 1]
            rows.append([f"block {block - blocks}, p = {grid_sizes[scale]}", round(float(values.mean()), 4),
                         *np.quantile(values, QUANTILES).round(4).tolist(),
                         round(float(found.deviation[block, i].mean()), 4),
                         *(None if np.isnan(gain.total) else round(gain.total, 4) for gain in evidence)])
    tables = [Table("learned gates and Wiener gains", [
        "last blocks, scale", "mean", *(f"{round(100 * q)} % below" for q in QUANTILES), "over tokens",
        "Wiener gain of D", "of A"], rows, _COLUMNS + _CANNOT)]
    if scales > 1:
        rows = []
        for block in range(blocks):
            for i, scale in enumerate(list(taught)[1:], start=1):
                ratio = found.mean[block, i] / found.mean[block, i - 1]
                before, now = wiener[scale - 2], wiener[scale - 1]
                rows.append([f"block {block - blocks}, p = {grid_sizes[scale - 1]} to {grid_sizes[scale]}",
                             *np.quantile(ratio, QUANTILES).round(4).tolist(),
                             *(None if np.isnan(a.total / b.total) else round(a.total / b.total, 4)
                               for a, b in zip(now, before, strict=True))])
        tables.append(Table("how gates and Wiener gains change from scale to scale", [
            "last blocks, scales", *(f"{round(100 * q)} % below" for q in QUANTILES),
            "Wiener gain of D", "of A"], rows,
            "Ratios of gates, as quantiles over the channels, and ratios of the Wiener gains of the last views that "
            "the scales see. These can be compared."))
    share = np.linspace(0, 1, 101)
    lines = [Line(f"block {block - blocks}, p = {grid_sizes[scale]}", share.tolist(),
                  np.quantile(found.mean[block, i], share).tolist())
             for block in range(blocks) for i, scale in enumerate(taught)]
    return tables, [Chart("learned gates over channels", "share of channels", "gate", lines, note=_CANNOT)]
