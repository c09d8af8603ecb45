"""Several square views of one image, side by side on one canvas, so that a network runs once for all of them.

A network that runs for each view on its own is compiled as often as there are views. On a canvas it runs once, and
gives the result that each view would have alone, if three rules hold: what lies between the views is zero where a
convolution reads it, normalization takes the statistics of each view by itself, and attention stays inside a view.
After a normalization it is zero anyway; `clear` is for what a convolution reads from elsewhere.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Places for square views, measured in cells: a cell is one vector of the latent, `stride` pixels of the image.

    There is at least one empty cell between two views, which a convolution of three by three cannot cross.

    Attributes:
      sides: Sides of the views in cells.
    """

    sides: tuple[int, ...]

    @functools.cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """Row and column of the first cell of each view: large views first, below others where there is room."""
        height, corners = max(self.sides), {}
        # Free rectangles: row, column, height, width. The first is a strip that never becomes as narrow as a view.
        free = [(0, 0, height, (height + 1) * (len(self.sides) + 1))]
        for index in sorted(range(len(self.sides)), key=lambda index: -self.sides[index]):
            side = self.sides[index]
            row, column, rows, columns = place = min(
                (r for r in free if min(r[2:]) >= side), key=lambda r: (r[2] * r[3], r[1]))
            free.remove(place)
            corners[index] = row, column
            is_strip, used = columns > height, side + 1
            free.append((row + used, column, rows - used, side if is_strip else columns))
            free.append((row, column + used, rows if is_strip else side, columns - used))
        return tuple(corners[index] for index in range(len(self.sides)))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: the canvas is as high as the largest view."""
        return max(self.sides), max(column + side for side, (_, column) in zip(self.sides, self.corners, strict=True))

    def put(self, views: Sequence[jax.Array]) -> jax.Array:
        """Puts the views (b, f p_k, f p_k, c) on the canvas (b, f rows, f columns, c), zero between them."""
        cell = views[0].shape[1] // self.sides[0]
        rows, columns = (cell * n for n in self.shape)
        result = jnp.zeros((views[0].shape[0], rows, columns, views[0].shape[3]), views[0].dtype)
        for view, (row, column) in zip(views, self.corners, strict=True):
            result = jax.lax.dynamic_update_slice(result, view, (0, row * cell, column * cell, 0))
        return result

    def take(self, canvas_bhwc: jax.Array) -> list[jax.Array]:
        """Takes the views off the canvas: undoes `put`."""
        cell = canvas_bhwc.shape[1] // self.shape[0]
        return [canvas_bhwc[:, row * cell:(row + side) * cell, column * cell:(column + side) * cell]
                for side, (row, column) in zip(self.sides, self.corners, strict=True)]

    def masks(self) -> np.ndarray:
        """Marks the cells of each view by 1: (views, rows, columns) float32."""
        masks = np.zeros((len(self.sides), *self.shape), np.float32)
        for mask, side, (row, column) in zip(masks, self.sides, self.corners, strict=True):
            mask[row:row + side, column:column + side] = 1
        return masks


def clear(x_bhwc: jax.Array, canvas: Canvas | None) -> jax.Array:
    """Makes what lies between the views zero; without a canvas, returns the input."""
    if canvas is None:
        return x_bhwc
    occupied = jnp.asarray(canvas.masks().sum(axis=0), x_bhwc.dtype)[None, :, None, :, None, None]
    return (_cells(x_bhwc, canvas.shape) * occupied).reshape(x_bhwc.shape)


def _cells(x_bhwc: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Splits pixels into cells: (b, rows, f, columns, f, c)."""
    b, h, w, c = x_bhwc.shape
    return x_bhwc.reshape(b, shape[0], h // shape[0], shape[1], w // shape[1], c)


def means(arrays_bhwc: Sequence[jax.Array], canvas: Canvas | None) -> jax.Array:
    """Means of n arrays over the pixels of each view, (n, b, views, c); without a canvas, everything is one view."""
    if canvas is None:
        return jnp.stack([x.mean(axis=(1, 2)) for x in arrays_bhwc])[:, :, None]
    weights = canvas.masks() / np.square(canvas.sides, dtype=np.float32)[:, None, None]
    of_cells = jnp.stack([_cells(x, canvas.shape).mean(axis=(2, 4)) for x in arrays_bhwc])
    return jnp.einsum("vrs,nbrsc->nbvc", weights, of_cells, precision=jax.lax.Precision.HIGHEST)


def pixels(x_bhwc: jax.Array, canvas: Canvas | None) -> np.ndarray:
    """Number of pixels of each view, (1, views, 1) float32; without a canvas, everything is one view."""
    if canvas is None:
        return np.full((1, 1, 1), x_bhwc.shape[1] * x_bhwc.shape[2], np.float32)
    return np.square(np.array(canvas.sides, np.float32) * (x_bhwc.shape[1] // canvas.shape[0]))[None, :, None]


def combine(arrays_bhwc: Sequence[jax.Array], factors_bvc: Sequence[jax.Array], shift_bvc: jax.Array,
            canvas: Canvas | None) -> jax.Array:
    """Multiplies n arrays by factors of each view, and adds them and a shift; between the views, the result is 0."""
    values = [*factors_bvc, shift_bvc]
    if canvas is None:
        *factors, shift = (value[:, :, None] for value in values)
        return sum((x * factor for x, factor in zip(arrays_bhwc, factors, strict=True)), shift)
    of_cells = jnp.einsum("vrs,nbvc->nbrsc", canvas.masks(), jnp.stack(values), precision=jax.lax.Precision.HIGHEST)
    *factors, shift = of_cells[:, :, :, None, :, None]
    cells = [_cells(x, canvas.shape) for x in arrays_bhwc]
    return sum((x * factor for x, factor in zip(cells, factors, strict=True)), shift).reshape(arrays_bhwc[0].shape)


def same_view(canvas: Canvas) -> np.ndarray:
    """Whether two cells belong to the same view, or both to none: (cells, cells) bool, for attention."""
    masks = canvas.masks()
    views = np.where(masks.any(axis=0), masks.argmax(axis=0), -1).reshape(-1)
    return views[:, None] == views[None]
