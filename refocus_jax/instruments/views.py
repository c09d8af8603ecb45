"""How much of a focus view is aliasing: exact, without a reference, since views are linear in the image.

An image is the sum of what the pixels of a view can hold (its cosines below their Nyquist rate, x_in) and the rest
(x_out). Both go through the view operator V. V(x_in) is signal, V(x_out) is aliases, and nothing else is in V(x). The
residual A = D - L falls apart the same way: (D - L)(x_out) is aliases that blur has removed, (D - L)(x_in) is signal
that it has removed as well: lost sharpness, and no aliasing at all.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.focus import Pyramid, radii
from refocus_jax.focus.spectrum import cosine_lowpass
from refocus_jax.focus.views import DOWNSAMPLERS

# What charts show; tables have every combination.
SHOWN = ("none + stride", "none + bilinear", "none + area", "gaussian cosine + bilinear", "disk cosine + bilinear",
         "disk nyquist + bilinear")


def combinations(grid_sizes: Sequence[int], stride: int, rho_max: float) -> dict[str, Pyramid]:
    """Pyramids of every PSF, schedule and reduction over these grids, by name: "disk cosine + bilinear", ...

    A PSF that is too large for images of this size is left out.
    """
    optics = {"none": ("none", "cosine")} | {
        f"{psf} {schedule}": (psf, schedule) for psf in ("gaussian", "disk") for schedule in ("cosine", "nyquist")}
    every = {f"{name} + {downsample}": Pyramid(tuple(grid_sizes), stride, rho_max, psf, schedule, downsample)
             for name, (psf, schedule) in optics.items() for downsample in DOWNSAMPLERS}
    return {name: pyramid for name, pyramid in every.items() if _fits(pyramid)}


def _fits(pyramid: Pyramid) -> bool:
    side = pyramid.image_size
    try:
        jax.eval_shape(pyramid.views, jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32))
    except ValueError:  # from the blur, as the shape is right
        return False
    return True


def name_of(pyramid: Pyramid) -> str:
    """The name that `combinations` gives to its like."""
    optics = pyramid.psf if pyramid.psf == "none" else f"{pyramid.psf} {pyramid.schedule}"
    return f"{optics} + {pyramid.downsample}"


class Powers(NamedTuple):
    """Mean squares per pixel and channel, without the mean of each channel; all arrays have the same shape.

    `shares` of sums over images are what one asks for.
    """

    available: np.ndarray  # x_in, in the image: what an ideal view would show
    signal: np.ndarray  # V(x_in)
    alias: np.ndarray  # V(x_out)
    residual_signal: np.ndarray  # A(x_in) = (D - L)(x_in)
    residual_alias: np.ndarray  # A(x_out)


class Shares(NamedTuple):
    """Energies of views in relation to each other, (scales,) each."""

    alias: np.ndarray  # V(x_out) over V(x_in)
    kept: np.ndarray  # V(x_in) over x_in: 1 is an ideal view's
    residual_alias: np.ndarray  # A(x_out) over A(x_in) and A(x_out) together; nan where both are 0
    alias_rms: np.ndarray  # V(x_out), root mean square, in units of the image


def split(image_bhwc: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """(x_in, x_out) for views of that side: their sum is the image, its mean left out."""
    image_bhwc = image_bhwc - image_bhwc.mean(axis=(1, 2), keepdims=True)
    low = cosine_lowpass(image_bhwc, side)
    return low, image_bhwc - low


def _power(image_bhwc: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(image_bhwc), axis=(1, 2, 3))


@functools.partial(jax.jit, static_argnums=0)
def _measure(pyramids: tuple[Pyramid, ...], image_bhwc: jax.Array) -> list[list[list[jax.Array]]]:
    """[pyramid][scale][of `Powers`] (b,). What pyramids have in common is compiled once."""
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


def measure(pyramids: Mapping[str, Pyramid], images: Iterable[np.ndarray]) -> dict[str, Powers]:
    """Powers of every pyramid's views, (images, K - 1) float64 arrays; the last view is the image and has no alias.

    Args:
      pyramids: all of the same image size. images: (h, w, c) in [-1, 1].
    """
    ordered = tuple(pyramids.values())
    found = np.asarray([np.asarray(jax.device_get(_measure(ordered, jnp.asarray(image, jnp.float32)[None])))[..., 0]
                        for image in images], np.float64)  # (images, pyramids, scales, powers)
    return {name: Powers(*np.moveaxis(found[:, i], -1, 0)) for i, name in enumerate(pyramids)}


def shares(powers: Powers) -> Shares:
    """Of all images together, so that images with little detail count for little."""
    total = Powers(*(array.mean(axis=0) for array in powers))
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing is blurred
        residual_alias = total.residual_alias / (total.residual_alias + total.residual_signal)
    return Shares(total.alias / total.signal, total.signal / total.available, residual_alias, np.sqrt(total.alias))


# Of `Shares`: what a table or chart of it is called, what its cells are multiplied by, and what to know of them.
QUANTITIES = {
    "alias": ("alias energy, % of the view's signal", 100.0,
              "Energy of what the view makes of frequencies that its pixels cannot hold, over energy of what it makes "
              "of those that they can. The mean is left out of both."),
    "kept": ("in-band energy kept, %", 100.0,
             "Energy of what the view shows of the frequencies that its pixels can hold, over what an ideal view would "
             "show. Less than 100 is lost sharpness."),
    "alias_rms": ("aliases, r.m.s. in grey levels of 256", 127.5, "How strong the aliases are in the view."),
    "residual_alias": ("true aliasing in the residual A, %", 100.0,
                       "Of the energies of both parts of A = D - L; the other part is signal that the blur has "
                       "removed, which is lost sharpness and no aliasing."),
}


def tables(title: str, found: Mapping[str, Powers], grid_sizes: Sequence[int], own: str | None = None) -> list[Table]:
    """One table per quantity: a row per pyramid, a column per view.

    Args:
      title: what was measured, such as "var10, photographs". own: name of the pyramid to mark as the run's.
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
    """How large the blur of each schedule is beside what the view's Nyquist rate asks for."""
    factors = grid_sizes[-1] / np.asarray(grid_sizes, np.float64)
    cosine, nyquist = (radii(len(factors), rho_max, name, factors)[:-1] for name in ("cosine", "nyquist"))
    rows = {"down-sampling factor s": factors[:-1], f"radius, cosine from {rho_max:g}": cosine,
            "radius, nyquist (1.22 s)": nyquist, "cosine over nyquist": cosine / nyquist}
    return Table(f"{title}: radii in pixels", ["", *(f"p = {p}" for p in grid_sizes[:-1])],
                 [[name, *values.round(2).tolist()] for name, values in rows.items()],
                 "A disk of the nyquist radius has its first null at the view's Nyquist rate. A disk of half a pixel "
                 "or less does not blur.")


def charts(title: str, found: Mapping[str, Powers], grid_sizes: Sequence[int], own: str | None = None) -> list[Chart]:
    """Alias energy and in-band energy kept over the grid's side, of the pyramids in SHOWN and the run's own."""
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
