"""What the tab Views does: L, D and A of an image, with what aliases in them and what they keep."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from refocus_jax.data import masks, pictures
from refocus_jax.demo import cards
from refocus_jax.focus import Pyramid
from refocus_jax.instruments import views

SCHEDULES = ("cosine", "nyquist")


class Seen(NamedTuple):
    """The views of one scale. Shares are those of `instruments.views.Shares`; None at the last scale, the image.

    Attributes:
      grid: Side p_k of the token map.
      radius: Radius of the blur, in pixels of the image.
      focused: L_k, uint8 (s, s, 3).
      downsampled: D_k, the same shape.
      residual: 2 A_k, the same shape.
      alias: Alias energy over signal energy in L_k.
      alias_without: The same in D_k, without blur.
      kept: Share of the energy below the Nyquist rate that L_k keeps.
    """

    grid: int
    radius: float
    focused: np.ndarray
    downsampled: np.ndarray
    residual: np.ndarray
    alias: float | None
    alias_without: float | None
    kept: float | None


def pyramid(optics: Pyramid, psf: str, schedule: str, radius: float) -> Pyramid:
    """Returns a pyramid with another blur.

    Raises:
      ValueError: The values do not describe one.
    """
    return dataclasses.replace(optics, psf=psf, schedule=schedule, rho_max=float(radius))


def look(picture_hwc: np.ndarray, optics: Pyramid) -> list[Seen]:
    """Makes and measures the views of the middle square of a uint8 picture (h, w, 3), coarse to fine.

    Raises:
      ValueError: A blur is too large for images of this size.
    """
    image = masks.to_model(picture_hwc, optics.image_size)
    measured, without = (views.shares(views.measure_one(made, image))
                         for made in (optics, dataclasses.replace(optics, psf="none")))
    seen = []
    blur = optics.radii() if optics.psf != "none" else np.zeros(len(optics.grid_sizes))
    for scale, view in enumerate(optics.views(jnp.asarray(image)[None])):
        focused, downsampled, residual = (pictures.to_uint8(gain * np.asarray(part[0]))
                                          for gain, part in zip((1, 1, 2), view, strict=True))
        shares = ((None,) * 3 if scale + 1 == len(optics.grid_sizes) else
                  (float(measured.alias[scale]), float(without.alias[scale]), float(measured.kept[scale])))
        seen.append(Seen(optics.grid_sizes[scale], float(blur[scale]), focused, downsampled, residual, *shares))
    return seen


def view_cards(seen: Sequence[Seen]) -> str:
    """Returns the views as HTML: per scale a row of L, D and A with its numbers."""
    rows = []
    for one in seen:
        figures = [cards.figure(image, caption, pixels=True) for image, caption in (
            (one.focused, "L, blurred"), (one.downsampled, "D, not blurred"), (one.residual, "A = D - L, doubled"))]
        said = "The image itself: L = D." if one.alias is None else (
            f"Alias energy {_percent(one.alias)} of the signal in L, {_percent(one.alias_without)} in D. "
            f"L keeps {_percent(one.kept)} of the energy that its pixels can show.")
        rows.append(cards.section(f"{one.grid} × {one.grid} tokens, radius {one.radius:.2g} px", said,
                                  cards.row(figures)))
    return "".join(rows)


def _percent(share: float | None) -> str:
    if share is None or not np.isfinite(share):
        return "no energy"
    return f"{100 * share:.3g} %" if share >= 1e-5 else "less than 0.001 %"
