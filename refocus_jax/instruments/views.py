"""The share of aliasing in focus views; exact and without a reference, because views are linear in the image.

An image is the sum of the part that the pixels of a view can represent (its cosines below their Nyquist rate, x_in) and
the rest (x_out). The view operator V acts on both parts: V(x) consists of the signal V(x_in) and the aliases V(x_out).
The residual A = D - L is split in the same way: (D - L)(x_out) is aliases that the blur has removed, and (D - L)(x_in)
is signal that the blur has also removed, which is lost sharpness and not aliasing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.focus import Pyramid, radii
from refocus_jax.focus.spectrum import cosine_lowpass
from refocus_jax.focus.views import DOWNSAMPLERS

# The combinations in charts; tables have every combination.
SHOWN = ("none + stride", "none + bilinear", "none + area", "gaussian cosine + bilinear", "disk cosine + bilinear",
         "disk nyquist + bilinear")


def combinations(grid_sizes: Sequence[int], stride: int, rho_max: float) -> dict[str, Pyramid]:
    """Make pyramids with every PSF, schedule and reduction.

    A PSF that is too large for images of this size is left out.

    Args:
      grid_sizes: Grid sizes p_k of the scales.
      stride: Stride of the tokenizer.
      rho_max: Largest radius of the cosine schedule in pixels.

    Returns:
      The pyramids by name, such as "disk cosine + bilinear".
    """
    optics = {"none": ("none", "cosine")} | {
        f"{psf} {schedule}": (psf, schedule) for psf in ("gaussian", "disk") for schedule in ("cosine", "nyquist")}
    every = {f"{name} + {downsample}": Pyramid(grid_sizes=tuple(grid_sizes), stride=stride, rho_max=rho_max, psf=psf,
                                               schedule=schedule, downsample=downsample)
             for name, (psf, schedule) in optics.items() for downsample in DOWNSAMPLERS}
    return {name: pyramid for name, pyramid in every.items() if _fits(pyramid)}


def _fits(pyramid: Pyramid) -> bool:
    side = pyramid.image_size
    try:
        jax.eval_shape(pyramid.views, jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    except ValueError:  # raised by the blur; the shape of the image is right
        return False
    return True


def name_of(pyramid: Pyramid) -> str:
    """Return the name of a pyramid in `combinations`."""
    optics = pyramid.psf if pyramid.psf == "none" else f"{pyramid.psf} {pyramid.schedule}"
    return f"{optics} + {pyramid.downsample}"


class Powers(NamedTuple):
    """Mean squares per pixel and channel, without the mean of each channel; all arrays have the same shape.

    Attributes:
      available: Of x_in in the image, which an ideal view would show.
      signal: Of V(x_in).
      alias: Of V(x_out).
      residual_signal: Of A(x_in) = (D - L)(x_in).
      residual_alias: Of A(x_out).
    """

    available: np.ndarray
    signal: np.ndarray
    alias: np.ndarray
    residual_signal: np.ndarray
    residual_alias: np.ndarray


class Shares(NamedTuple):
    """Ratios of the energies of views, (scales,) each.

    Attributes:
      alias: V(x_out) over V(x_in).
      kept: V(x_in) over x_in; 1 for an ideal view.
      residual_alias: A(x_out) over the sum of A(x_in) and A(x_out); NaN where both are 0.
      alias_rms: Root mean square of V(x_out), in units of the image.
    """

    alias: np.ndarray
    kept: np.ndarray
    residual_alias: np.ndarray
    alias_rms: np.ndarray


def split(image_bhwc: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Split images into (x_in, x_out) for views of a side: their sum is the image without its mean."""
    image_bhwc = image_bhwc - image_bhwc.mean(axis=(1, 2), keepdims=True)
    low = cosine_lowpass(image_bhwc, side)
    return low, image_bhwc - low


def _power(image_bhwc: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(image_bhwc), axis=(1, 2, 3))


def _powers(pyramids: tuple[Pyramid, ...], image_bhwc: jax.Array) -> list[list[list[jax.Array]]]:
    """Compute the powers (b,), indexed by [pyramid][scale][field of `Powers`]."""
    result = []
    for pyramid in pyramids:
        scales = []
        for scale, grid in enumerate(pyramid.grid_sizes[:-1]):
            low, high = split(image_bhwc, pyramid.stride * grid)
            inside, outside = pyramid.view(low, scale), pyramid.view(high, scale)
            scales.append([_power(part) for part in (
                low, inside.focused, outside.focused, inside.residual, outside.residual)])
        result.append(scales)
    return result


_measure = jax.jit(_powers, static_argnums=0)  # common parts of the pyramids are compiled once


def measure_one(pyramid: Pyramid, image_hwc: np.ndarray) -> Powers:
    """Measure one pyramid that will change at once: like `measure`, but without compiling for it.

    Args:
      pyramid: The pyramid.
      image_hwc: The image in [-1, 1].

    Returns:
      Powers with arrays (1, K - 1), float64.
    """
    found = _powers((pyramid,), jnp.asarray(image_hwc, jnp.float32)[None])[0]
    return Powers(*np.moveaxis(np.asarray(jax.device_get(found), np.float64)[..., 0][None], -1, 0))


def measure(pyramids: Mapping[str, Pyramid], images: Iterable[np.ndarray]) -> dict[str, Powers]:
    """Measure the views of every pyramid except the last view, which is the image and has no aliases.

    Args:
      pyramids: Pyramids by name, all with the same image size.
      images: Images (h, w, c) in [-1, 1].

    Returns:
      Powers by the name of the pyramid, with arrays (images, K - 1), float64.
    """
    ordered = tuple(pyramids.values())
    found = np.asarray([np.asarray(jax.device_get(_measure(ordered, jnp.asarray(image, jnp.float32)[None])))[..., 0]
                        for image in images], np.float64)  # (images, pyramids, scales, powers)
    return {name: Powers(*np.moveaxis(found[:, i], -1, 0)) for i, name in enumerate(pyramids)}


def shares(powers: Powers) -> Shares:
    """Compute ratios of energies summed over all images, so that images with little detail have little weight."""
    total = Powers(*(array.mean(axis=0) for array in powers))
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is blurred
        residual_alias = total.residual_alias / (total.residual_alias + total.residual_signal)
    return Shares(total.alias / total.signal, total.signal / total.available, residual_alias, np.sqrt(total.alias))


# For each field of `Shares`: title of its table or chart, factor of its cells, and explanation.
QUANTITIES = {
    "alias": ("alias energy, % of the view's signal", 100.0,
              "Energy in the view from frequencies that its pixels cannot represent, over energy from frequencies that "
              "they can. Both without the mean."),
    "kept": ("in-band energy kept, %", 100.0,
             "Energy in the view from frequencies that its pixels can represent, over the energy that an ideal view "
             "would show. Less than 100 is lost sharpness."),
    "alias_rms": ("aliases, r.m.s. in grey levels of 256", 127.5, "How strong the aliases are in the view."),
    "residual_alias": ("true aliasing in the residual A, %", 100.0,
                       "Share of the energy of A = D - L; the other part is signal that the blur has removed, which is "
                       "lost sharpness and not aliasing."),
}


def tables(title: str, found: Mapping[str, Powers], grid_sizes: Sequence[int], own: str | None = None) -> list[Table]:
    """Make one table per quantity, with a row per pyramid and a column per view.

    Args:
      title: Name of the measured images, such as "var10, photographs".
      found: Powers by the name of the pyramid.
      grid_sizes: Grid sizes p_k of the scales.
      own: Name of the pyramid to mark as the run's own.

    Returns:
      The tables.
    """
    result = []
    rows = {name: shares(powers) for name, powers in found.items()}
    for field, (label, factor, note) in QUANTITIES.items():
        cells = [[name + (" (this run)" if name == own else ""),
                  *(None if np.isnan(value) else float(f"{factor * value:.3g}") for value in getattr(row, field))]
                 for name, row in rows.items() if not np.isnan(getattr(row, field)).all()]
        columns = ["view operator", *(f"p = {p}" for p in grid_sizes[:-1])]
        result.append(Table(f"{title}: {label}", columns, cells, note))
    return result


def radii_table(title: str, grid_sizes: Sequence[int], rho_max: float) -> Table:
    """Make a table that compares the blur radii of the two schedules.

    Args:
      title: Beginning of the title.
      grid_sizes: Grid sizes p_k of the scales.
      rho_max: Largest radius of the cosine schedule in pixels.

    Returns:
      The table.
    """
    factors = grid_sizes[-1] / np.asarray(grid_sizes, np.float64)
    cosine, nyquist = (radii(len(factors), rho_max, name, factors.tolist())[:-1] for name in ("cosine", "nyquist"))
    rows = {"down-sampling factor s": factors[:-1], f"radius, cosine from {rho_max:g}": cosine,
            "radius, nyquist (1.22 s)": nyquist, "cosine over nyquist": cosine / nyquist}
    return Table(f"{title}: radii in pixels", ["", *(f"p = {p}" for p in grid_sizes[:-1])],
                 [[name, *values.round(2).tolist()] for name, values in rows.items()],
                 "A disk of the nyquist radius has its first null at the view's Nyquist rate. A disk of half a pixel "
                 "or less does not blur.")


def charts(title: str, found: Mapping[str, Powers], grid_sizes: Sequence[int], own: str | None = None) -> list[Chart]:
    """Draw alias energy and in-band energy kept over the side of the grid.

    Args:
      title: Beginning of the titles.
      found: Powers by the name of the pyramid; only those in SHOWN and `own` are drawn.
      grid_sizes: Grid sizes p_k of the scales.
      own: Name of the pyramid to mark as the run's own.

    Returns:
      The charts.
    """
    shown = [name for name in found if name in (*SHOWN, own)]
    result = []
    for field, log_y in (("alias", True), ("kept", False)):
        label, factor, note = QUANTITIES[field]
        lines = [Line(name + (" (this run)" if name == own else ""), list(grid_sizes[:-1]),
                      (factor * getattr(shares(found[name]), field)).tolist(), dashed=name.startswith("none"))
                 for name in shown]
        result.append(Chart(f"{title}: {label.partition(',')[0]}", "side p of the token map", label, lines, log_y=log_y,
                            note=note))
    return result
