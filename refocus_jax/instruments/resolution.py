"""The detail that a tokenizer preserves or invents, measured with gratings, a zone plate, slanted edges and text.

A tokenizer is a function from images (b, size, size, 3) in [-1, 1] to their reconstructions. All patterns are grey, and
all measurements use the luminance.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.instruments import patterns

CONTRAST = 0.6  # of gratings and edges: dark is 0.2 and light 0.8 of white, the 4 : 1 of ISO 12233
ANGLES = {"vertical": 0.0, "diagonal": math.pi / 4, "horizontal": math.pi / 2}  # of the lines of gratings
EDGE_ANGLE = math.radians(5)
OVERSAMPLING = 4  # bins per pixel of the edge-spread function
MIN_EDGE_SIZE = 32  # pixels; on a smaller image, an edge of 5 degrees does not cross enough pixels
TEXT_HEIGHTS = (6, 8, 10, 12, 16, 20, 24, 32)  # pixels
TEXT_REPEATS = 3
_BATCH = 8


def reconstruct_grey(reconstruct: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the luminance (n, size, size) of a tokenizer's reconstructions of grey images (size, size), in batches."""
    decoded = []
    for start in range(0, len(images), _BATCH):
        batch = np.stack([images[min(i, len(images) - 1)] for i in range(start, start + _BATCH)])  # one shape
        colour = np.repeat(batch.astype(np.float32)[..., None], 3, axis=-1)
        decoded.append(patterns.luminance(np.asarray(reconstruct(colour))))
    return np.concatenate(decoded)[:len(images)]


class SineFit(NamedTuple):
    """The image of a grating, relative to the grating.

    Attributes:
      gain: Amplitude at the frequency of the grating, with any phase.
      moire: Energy of everything else except the mean.
    """

    gain: float
    moire: float


def sine_fit(grating: np.ndarray, image: np.ndarray, frequency: float, angle: float) -> SineFit:
    """Fit a constant and a wave of the grating's frequency by least squares, under a Hann window.

    Args:
      grating: The grating (size, size).
      image: Its image (size, size).
      frequency: Frequency of the grating in cycles per pixel.
      angle: Angle between its normal and the x axis, in radians.

    Returns:
      The image relative to the grating.
    """
    size = len(grating)
    root = np.sqrt(np.outer(*[np.hanning(size + 2)[1:-1]] * 2)).ravel()
    waves = [patterns.grating(size, frequency, angle, phase).ravel() for phase in (0.0, -np.pi / 2)]
    basis = np.stack([np.ones(size * size), *waves], axis=1) * root[:, None]
    power, rest = [], []
    for values in (grating.ravel() * root, image.ravel() * root):
        fitted = np.linalg.lstsq(basis, values, rcond=1e-6)[0]  # at the Nyquist rate, the two waves may be equal
        power.append(np.square(basis[:, 1:] @ fitted[1:]).sum())
        rest.append(np.square(values - basis @ fitted).sum())
    return SineFit(float(np.sqrt(power[1] / power[0])), float((rest[1] - rest[0]) / power[0]))


class Gratings(NamedTuple):
    """Results for gratings of every direction in `ANGLES` and every frequency.

    Attributes:
      frequencies: Frequencies (n,) in cycles per pixel, up to 1/2.
      gain: Gains (3, n), see `SineFit`.
      moire: Energies of moire (3, n), see `SineFit`.
    """

    frequencies: np.ndarray
    gain: np.ndarray
    moire: np.ndarray


def gratings(reconstruct: Callable, size: int, count: int = 16) -> Gratings:
    """Measure gain and moire of gratings of `count` frequencies up to the Nyquist rate, in three directions."""
    frequencies = 0.5 * np.arange(1, count + 1) / count
    settings = [(frequency, angle) for angle in ANGLES.values() for frequency in frequencies]
    # With this phase, the pixels are not on the nodes of the grating at the Nyquist rate.
    shown = [CONTRAST * patterns.grating(size, *setting, phase=np.pi / 4) for setting in settings]
    fits = [sine_fit(a, b, *setting)
            for a, b, setting in zip(shown, reconstruct_grey(reconstruct, shown), settings, strict=True)]
    gain, moire = np.array(fits).reshape(len(ANGLES), count, 2).transpose(2, 0, 1)
    return Gratings(frequencies, gain, moire)


def zone_plate_moire(plate: np.ndarray, image: np.ndarray) -> float:
    """Compute the energy of moire in the image of a zone plate, relative to the energy of the plate.

    Moire is everything that is not the plate times a smoothly varying gain. The gain at each point is fitted by least
    squares under a Gaussian window with 2 % of the area of the picture, so 2 % of noise is taken for the plate.

    Args:
      plate: The zone plate (size, size).
      image: Its image (size, size).

    Returns:
      The relative energy.
    """
    size = len(plate)
    place = np.arange(size)
    window = np.exp(-0.5 * np.square((place[:, None] - place[None, :]) / (0.04 * size)))
    image = image - image.mean()
    gain = window @ (plate * image) @ window / (window @ np.square(plate) @ window)
    return float(np.square(image - gain * plate).sum() / np.square(plate).sum())


class Mtf(NamedTuple):
    """The modulation transfer function.

    Attributes:
      frequencies: Frequencies in cycles per pixel, up to 1.
      response: The response, 1 at frequency 0.
    """

    frequencies: np.ndarray
    response: np.ndarray

    @property
    def mtf50(self) -> float | None:
        """The frequency where the response first falls to one half; None if it does not."""
        below = np.flatnonzero(self.response < 0.5)
        if not len(below) or below[0] == 0:
            return None
        i = below[0]
        (f0, f1), (r0, r1) = self.frequencies[i - 1:i + 1], self.response[i - 1:i + 1]
        return float(f0 + (r0 - 0.5) / (r0 - r1) * (f1 - f0))


def edge_mtf(image: np.ndarray) -> Mtf | None:
    """Compute the MTF of an image of a slanted edge after ISO 12233 (e-SFR).

    The edge is located in every row, and a line is fitted. All pixels, sorted by their distance to the line, give one
    edge-spread function with bins of 1/4 pixel. Its derivative is Fourier-transformed under a Hamming window and
    corrected for the bins and the finite difference.

    Args:
      image: Image (size, size) of the edge, dark on the left and light on the right.

    Returns:
      The MTF; None if no edge is found, because the line is not between the borders or bins are empty.
    """
    size = len(image)
    rows, columns = np.arange(size), np.arange(size - 1) + 0.5
    slope = np.diff(image, axis=1)

    def line(weights):
        """Fit a line through the centroids of the rows' slopes; return its inclination and offset."""
        mass = (slope * weights).sum(axis=1)
        if (mass <= 0).any():
            return None
        return np.polyfit(rows, (slope * weights * columns).sum(axis=1) / mass, 1)

    window = np.hamming(size - 1)[None, :]
    fitted = line(window)
    if fitted is None:
        return None
    # Fit again with the window centred on the edge in each row, as the standard demands.
    fitted = line(np.cos(np.clip((columns - np.polyval(fitted, rows)[:, None]) / size, -0.5, 0.5) * np.pi) ** 2)
    if fitted is None or not 0 < np.polyval(fitted, size / 2) < size - 1:
        return None
    distance = (np.arange(size)[None, :] - np.polyval(fitted, rows)[:, None]) * np.cos(np.arctan(fitted[0]))
    reach = size // 4
    bins = np.floor(distance * OVERSAMPLING).astype(int) + reach * OVERSAMPLING
    inside = (bins >= 0) & (bins < 2 * reach * OVERSAMPLING)
    counts = np.bincount(bins[inside], minlength=2 * reach * OVERSAMPLING)
    if (counts == 0).any():
        return None
    spread = np.diff(np.bincount(bins[inside], image[inside], minlength=len(counts)) / counts)
    centre = np.argmax(np.convolve(spread, np.ones(OVERSAMPLING), "same"))
    offset = (np.arange(len(spread)) - centre) / len(spread)
    spread = spread * (0.54 + 0.46 * np.cos(2 * np.pi * np.clip(offset, -0.5, 0.5)))
    frequencies = np.fft.rfftfreq(len(spread), 1 / OVERSAMPLING)
    response = np.abs(np.fft.rfft(spread)) / abs(spread.sum())
    shown = frequencies <= 1
    return Mtf(frequencies[shown], response[shown] / np.sinc(frequencies[shown] / OVERSAMPLING) ** 2)


def slanted_edges(size: int) -> dict[str, np.ndarray]:
    """Draw an edge near the vertical and one near the horizontal, (size, size)."""
    edge = patterns.slanted_edge(size, EDGE_ANGLE, CONTRAST)
    return {"vertical": edge, "horizontal": edge.T}


def read_text(text: patterns.Text, pages: np.ndarray, shift: int = 1) -> np.ndarray:
    """Recognize the characters on pages: for each cell, the glyph that correlates best with it.

    The correlation is normalized, so that contrast and brightness do not matter, and the glyph may be shifted.

    Args:
      text: The layout and the glyphs.
      pages: Pages with this layout.
      shift: Maximum shift of a glyph in pixels.

    Returns:
      Indices (n,) into CHARACTERS.
    """
    h, w = text.glyphs.shape[1:]

    def normalized(cells):
        flat = cells.reshape(len(cells), -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)

    templates, cells = normalized(text.glyphs), text.cells(pages, shift)
    best = [normalized(cells[:, top:top + h, left:left + w]) @ templates.T
            for top in range(2 * shift + 1) for left in range(2 * shift + 1)]
    return np.max(best, axis=0).argmax(axis=1)


def character_error(text: patterns.Text, pages: np.ndarray) -> float:
    """Return the share of the characters that are read wrongly; random guesses give 0.984."""
    return float((read_text(text, pages) != text.characters).mean())


def tables_and_charts(found: Gratings, moire: float, mtfs: dict[str, tuple[Mtf | None, Mtf | None]],
                      errors: dict[int, tuple[int, float, float]]) -> tuple[list[Table], list[Chart]]:
    """Make tables and charts of the measurements of a tokenizer.

    Args:
      found: Results for gratings.
      moire: Energy of moire of the zone plate.
      mtfs: For each edge, the MTF of the original and of the decoded image.
      errors: For each height of text, the number of characters and the errors in the original and the decoded image.

    Returns:
      The tables and the charts.
    """
    tables, charts = [], []
    limits: list[tuple[str, Any]] = [("all", slice(None)), ("up to 1/4", found.frequencies <= 0.25),
                                     ("above 1/4", found.frequencies > 0.25)]
    tables.append(Table("tokenizer: gratings", ["cycles per pixel", "gain", "moire, % of the grating's energy"], [
        [name, round(float(found.gain[:, part].mean()), 3), round(100 * float(found.moire[:, part].mean()), 2)]
        for name, part in limits] + [["zone plate", None, round(100 * moire, 2)]],
        "Gain is the amplitude at the grating's own frequency, 1 is perfect; moire is the energy at all other "
        "frequencies."))
    for field, label in (("gain", "gain"), ("moire", "share of the grating's energy")):
        charts.append(Chart(f"tokenizer: {field} of gratings", "cycles per pixel", label, [
            Line(f"{name} lines", found.frequencies.tolist(), values.tolist())
            for name, values in zip(ANGLES, getattr(found, field), strict=True)]))
    if mtfs:
        tables.append(Table("tokenizer: slanted edges, MTF50 in cycles per pixel", ["edge", "image", "decoded"], [
            [name, *(None if mtf is None or mtf.mtf50 is None else round(mtf.mtf50, 4) for mtf in pair)]
            for name, pair in mtfs.items()],
            "The frequency at which an edge has half its contrast, after ISO 12233. For the image it is that of square "
            "pixels, 0.603. A dash means that no edge is found, or that the response stays above one half."))
        charts.append(Chart("tokenizer: modulation transfer of slanted edges", "cycles per pixel", "response", [
            Line(f"{name} edge, {kind}", mtf.frequencies.tolist(), mtf.response.tolist(), dashed=kind == "image")
            for name, pair in mtfs.items() for kind, mtf in zip(("image", "decoded"), pair, strict=True)
            if mtf is not None]))
    if errors:
        tables.append(Table("tokenizer: character error of text, %",
                            ["height of the font, pixels", "characters", "image", "decoded"],
                            [[height, n, round(100 * before, 1), round(100 * after, 1)]
                             for height, (n, before, after) in errors.items()],
                            f"{len(patterns.CHARACTERS)} letters and digits in Aileron, black on white, each read by "
                            "the best correlation with all glyphs. Random guesses are wrong in 98.4 % of the cases."))
        charts.append(Chart("tokenizer: character error of text", "height of the font, pixels", "share read wrongly", [
            Line("image", list(errors), [before for _, before, _ in errors.values()], dashed=True),
            Line("decoded", list(errors), [after for _, _, after in errors.values()])]))
    return tables, charts
