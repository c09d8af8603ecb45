"""Test patterns: images whose spectrum is known, and small text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def zone_plate(size: int) -> np.ndarray:
    """Rings, ever finer from near the centre outwards: (size, size) float32 in [-1, 1].

    The local frequency along each axis is proportional to the distance from the rings' centre along it, and reaches the
    Nyquist rate, half a cycle per pixel, at the farthest border. So every frequency that the pixels can hold has about
    an equal share of the picture, and rings around any other centre are aliases. The centre is a little off the
    middle: a symmetric plate gives views that are grey by coincidence.
    """
    y, x = (np.arange(size) - (size - 1) / 2 - offset * size for offset in (0.02, -0.03))
    return np.cos(np.pi / (1.06 * size) * (y[:, None] ** 2 + x[None, :] ** 2)).astype(np.float32)


def grating(size: int, frequency: float, angle: float, phase: float = 0.0) -> np.ndarray:
    """A plane wave (size, size) in [-1, 1]; frequency in cycles per pixel, angle of its normal to the x axis."""
    x, y = np.arange(size)[None, :], np.arange(size)[:, None]
    return np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)


def slanted_edge(size: int, angle: float, contrast: float, supersampling: int = 16) -> np.ndarray:
    """A straight edge through the centre, dark left and light right: (size, size) in [-contrast, contrast].

    Each pixel is the mean of the edge over its square, as of an ideal sensor.

    Args:
      angle: of the edge to the vertical, radians.
    """
    fine = (np.arange(size * supersampling) + 0.5) / supersampling - size / 2
    light = fine[None, :] * np.cos(angle) > fine[:, None] * np.sin(angle)
    share = light.reshape(size, supersampling, size, supersampling).mean(axis=(1, 3))
    return contrast * (2 * share - 1)


class Text(NamedTuple):
    """Characters in cells, and the pages of cells that show them.

    Character i is on page i // (pages' rows * columns), row by row.
    """

    characters: np.ndarray  # (n,) indices into CHARACTERS
    pages: np.ndarray  # (pages, size, size) in [-1, 1], black on white
    glyphs: np.ndarray  # (62, h, w), each character's cell alone
    columns: int

    def cells(self, pages: np.ndarray, margin: int) -> np.ndarray:
        """The cells (n, h + 2 margin, w + 2 margin) of the characters on pages of this layout, white beyond borders."""
        h, w = self.glyphs.shape[1:]
        padded = np.pad(pages, ((0, 0), (margin, margin), (margin, margin)), constant_values=1.0)
        per_page = self.columns * (pages.shape[1] // h)
        found = []
        for i in range(len(self.characters)):
            page, place = divmod(i, per_page)
            top, left = place // self.columns * h, place % self.columns * w
            found.append(padded[page, top:top + h + 2 * margin, left:left + w + 2 * margin])
        return np.stack(found)


def text(size: int, height: int, repeats: int, seed: int = 0) -> Text | None:
    """Pages of `size` pixels with every letter and digit `repeats` times, in Pillow's embedded font (Aileron).

    Args:
      height: of the font in pixels (its em; capitals are about 0.7 of it).

    Returns:
      None if a page cannot hold one character.
    """
    font = ImageFont.load_default(height)
    ascent, descent = font.getmetrics()
    w, h = max(int(np.ceil(font.getlength(c))) for c in CHARACTERS) + 2, ascent + descent
    columns, rows = size // w, size // h
    if not columns or not rows:
        return None
    glyphs = np.stack([_glyph(c, font, w, h) for c in CHARACTERS])
    characters = np.random.default_rng(seed).permutation(np.tile(np.arange(len(CHARACTERS)), repeats))
    pages = np.ones((-(-len(characters) // (rows * columns)), size, size))
    for i, character in enumerate(characters):
        page, place = divmod(i, rows * columns)
        top, left = place // columns * h, place % columns * w
        pages[page, top:top + h, left:left + w] = glyphs[character]
    return Text(characters, pages, glyphs, columns)


def _glyph(character: str, font: ImageFont.FreeTypeFont, w: int, h: int) -> np.ndarray:
    cell = Image.new("L", (w, h), 255)
    ImageDraw.Draw(cell).text((w / 2, 0), character, fill=0, font=font, anchor="ma")
    return np.asarray(cell) / 127.5 - 1


def luminance(images_bhwc: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Rec. 709 luma of RGB images, (b, h, w) float64 in the images' own units."""
    return np.asarray(images_bhwc, np.float64) @ np.array([0.2126, 0.7152, 0.0722])
