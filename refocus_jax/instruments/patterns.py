"""Test patterns: images with a known spectrum, and small text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def zone_plate(size: int) -> np.ndarray:
    """Draw a zone plate, rings that become finer outwards: (size, size) float32 in [-1, 1].

    The local frequency along each axis is proportional to the distance from the rings' centre along this axis, and
    reaches the Nyquist rate, half a cycle per pixel, at the farthest border. So every frequency that the pixels can
    represent has about an equal share of the picture, and rings around any other centre are aliases. The rings are
    slightly off-centre: a symmetric plate gives views that happen to be grey.
    """
    y, x = (np.arange(size) - (size - 1) / 2 - offset * size for offset in (0.02, -0.03))
    return np.cos(np.pi / (1.06 * size) * (y[:, None] ** 2 + x[None, :] ** 2)).astype(np.float32)


def grating(size: int, frequency: float, angle: float, phase: float = 0.0) -> np.ndarray:
    """Draw a plane wave (size, size) in [-1, 1].

    Args:
      size: Side in pixels.
      frequency: Frequency in cycles per pixel.
      angle: Angle between the normal of the wave and the x axis, in radians.
      phase: Phase at the first pixel, in radians.

    Returns:
      The wave, float64.
    """
    x, y = np.arange(size)[None, :], np.arange(size)[:, None]
    return np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)


def slanted_edge(size: int, angle: float, contrast: float, supersampling: int = 16) -> np.ndarray:
    """Draw a straight edge through the centre, dark on the left and light on the right.

    Each pixel is the mean of the edge over its square, as for an ideal sensor.

    Args:
      size: Side in pixels.
      angle: Angle of the edge to the vertical, in radians.
      contrast: Largest value.
      supersampling: Number of samples per pixel along each axis.

    Returns:
      The picture (size, size), in [-contrast, contrast].
    """
    fine = (np.arange(size * supersampling) + 0.5) / supersampling - size / 2
    light = fine[None, :] * np.cos(angle) > fine[:, None] * np.sin(angle)
    share = light.reshape(size, supersampling, size, supersampling).mean(axis=(1, 3))
    return contrast * (2 * share - 1)


class Text(NamedTuple):
    """Characters in cells, and the pages that show them.

    The cells of a page are filled row by row: character i is on page i // (rows * columns).

    Attributes:
      characters: Indices (n,) into CHARACTERS.
      pages: The pages (pages, size, size) in [-1, 1], black on white.
      glyphs: The cell of each character alone, (62, h, w).
      columns: Number of columns of a page.
    """

    characters: np.ndarray
    pages: np.ndarray
    glyphs: np.ndarray
    columns: int

    def cells(self, pages: np.ndarray, margin: int) -> np.ndarray:
        """Cut the cells (n, h + 2 margin, w + 2 margin) out of pages with this layout; white beyond the borders."""
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
    """Draw pages with every letter and digit `repeats` times, in Pillow's embedded font (Aileron).

    Args:
      size: Side of a page in pixels.
      height: Height of the font in pixels (its em; capitals have about 0.7 of it).
      repeats: How often each character occurs.
      seed: Seed of the order of the characters.

    Returns:
      The pages; None if a page cannot hold one character.
    """
    font = ImageFont.load_default(height)
    assert isinstance(font, ImageFont.FreeTypeFont)  # as always if a height is given
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
    """Return the Rec. 709 luma of RGB images (b, h, w, 3), (b, h, w) float64 in the units of the images."""
    return np.asarray(images_bhwc, np.float64) @ np.array([0.2126, 0.7152, 0.0722])
