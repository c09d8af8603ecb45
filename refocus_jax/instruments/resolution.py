"""What detail a tokenizer passes on, and what it invents: gratings, zone plate, slanted edges and small text.

A tokenizer is a function from images (b, size, size, 3) in [-1, 1] to its reconstructions of them. All patterns are
grey, and all that is measured is luminance.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from refocus_jax.evaluation.tables import Chart, Line, Table
from refocus_jax.instruments import patterns

CONTRAST = 0.6  # of gratings and edges: dark 0.2 and light 0.8 of white, ISO 12233's 4 : 1
ANGLES = {"vertical": 0.0, "diagonal": math.pi / 4, "horizontal": math.pi / 2}  # of the gratings' lines
EDGE_ANGLE = math.radians(5)
OVERSAMPLING = 4  # of the edge-spread function
MIN_EDGE_SIZE = 32  # pixels; in less, an edge of 5 degrees does not cross enough of them
TEXT_HEIGHTS = (6, 8, 10, 12, 16, 20, 24, 32)  # pixels
TEXT_REPEATS = 3
_BATCH = 8


def reconstruct_grey(reconstruct: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray]) -> np.ndarray:
    """Luminance (n, size, size) of what a tokenizer makes of grey images (size, size), some at a time."""
    decoded = []
    for start in range(0, len(images), _BATCH):
        batch = np.stack([images[min(i, len(images) - 1)] for i in range(start, start + _BATCH)])  # one shape
        colour = np.repeat(batch.astype(np.float32)[..., None], 3, axis=-1)
        decoded.append(patterns.luminance(np.asarray(reconstruct(colour))))
    return np.concatenate(decoded)[:len(images)]


class SineFit(NamedTuple):
    """A grating's image in relation to the grating."""

    gain: float  # amplitude at the grating's frequency, any phase
    moire: float  # energy of all else but the mean


def sine_fit(grating: np.ndarray, image: np.ndarray, frequency: float, angle: float) -> SineFit:
    """Least squares of a constant and a wave of the grating's frequency, under a Hann window."""
    size = len(grating)
    root = np.sqrt(np.outer(*[np.hanning(size + 2)[1:-1]] * 2)).ravel()
    waves = [patterns.grating(size, frequency, angle, phase).ravel() for phase in (0.0, -np.pi / 2)]
    basis = np.stack([np.ones(size * size), *waves], axis=1) * root[:, None]
    power, rest = [], []
    for values in (grating.ravel() * root, image.ravel() * root):
        fitted = np.linalg.lstsq(basis, values, rcond=1e-6)[0]  # at the Nyquist rate the two waves may be one
        power.append(np.square(basis[:, 1:] @ fitted[1:]).sum())
        rest.append(np.square(values - basis @ fitted).sum())
    return SineFit(float(np.sqrt(power[1] / power[0])), float((rest[1] - rest[0]) / power[0]))


class Gratings(NamedTuple):
    """Per direction of `ANGLES` and frequency, (3, n)."""

    frequencies: np.ndarray  # cycles per pixel, up to 1/2
    gain: np.ndarray
    moire: np.ndarray


def gratings(reconstruct: Callable, size: int, count: int = 16) -> Gratings:
    """Gain and moire of gratings of `count` frequencies up to the Nyquist rate, in three directions."""
    frequencies = 0.5 * np.arange(1, count + 1) / count
    settings = [(frequency, angle) for angle in ANGLES.values() for frequency in frequencies]
    # This phase is no node of the grating whose frequency is the Nyquist rate.
    shown = [CONTRAST * patterns.grating(size, *setting, phase=np.pi / 4) for setting in settings]
    fits = [sine_fit(a, b, *setting)
            for a, b, setting in zip(shown, reconstruct_grey(reconstruct, shown), settings, strict=True)]
    gain, moire = np.array(fits).reshape(len(ANGLES), count, 2).transpose(2, 0, 1)
    return Gratings(frequencies, gain, moire)


def zone_plate_moire(plate: np.ndarray, image: np.ndarray) -> float:
    """Energy in a zone plate's image that is not the plate with a gain that varies smoothly, over the plate's energy.

    The gain at each point is that of least squares under a Gaussian window of an area 2 % of the picture: of noise,
    so much passes for the plate.
    """
    size = len(plate)
    place = np.arange(size)
    window = np.exp(-0.5 * np.square((place[:, None] - place[None, :]) / (0.04 * size)))
    image = image - image.mean()
    gain = window @ (plate * image) @ window / (window @ np.square(plate) @ window)
    return float(np.square(image - gain * plate).sum() / np.square(plate).sum())


class Mtf(NamedTuple):
    """Modulation transfer: frequencies in cycles per pixel up to 1, and the response, 1 at frequency 0."""

    frequencies: np.ndarray
    response: np.ndarray

    @property
    def mtf50(self) -> float | None:
        """Where the response first falls to one half; None if it does not."""
        below = np.flatnonzero(self.response < 0.5)
        if not len(below) or below[0] == 0:
            return None
        i = below[0]
        (f0, f1), (r0, r1) = self.frequencies[i - 1:i + 1], self.response[i - 1:i + 1]
        return float(f0 + (r0 - 0.5) / (r0 - r1) * (f1 - f0))


def edge_mtf(image: np.ndarray) -> Mtf | None:
    """MTF of an image (size, size) of a slanted edge, dark left and light right, after ISO 12233 (e-SFR).

    The edge is found in every row and fitted with a line. All pixels, by their distance to it, make one edge-spread
    function of 1/4 pixel. Its derivative, under a Hamming window, is transformed, and corrected for the bins and the
    difference.

    Returns:
      None if no edge is found: what should be one does not lie between the borders, or leaves bins empty.
    """
    size = len(image)
    rows, columns = np.arange(size), np.arange(size - 1) + 0.5
    slope = np.diff(image, axis=1)

    def line(weights):
        """Centroid of each row's slope, as offset and inclination of a line through all."""
        mass = (slope * weights).sum(axis=1)
        if (mass <= 0).any():
            return None
        return np.polyfit(rows, (slope * weights * columns).sum(axis=1) / mass, 1)

    window = np.hamming(size - 1)[None, :]
    fitted = line(window)
    if fitted is None:
        return None
    # Once more, with the window centred on the edge of each row, as the standard does.
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
    """Edges near the vertical and the horizontal, (size, size)."""
    edge = patterns.slanted_edge(size, EDGE_ANGLE, CONTRAST)
    return {"vertical": edge, "horizontal": edge.T}


def read_text(text: patterns.Text, pages: np.ndarray, shift: int = 1) -> np.ndarray:
    """The characters (n,) that pages of this layout show, each by the glyph that correlates best with its cell.

    Normalized correlation, so that contrast and brightness do not matter, the glyph moved by up to `shift` pixels.
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
    """Share of the characters that are read wrongly; by chance it is 0.984."""
    return float((read_text(text, pages) != text.characters).mean())


def tables_and_charts(found: Gratings, moire: float, mtfs: dict[str, tuple[Mtf | None, Mtf | None]],
                      errors: dict[int, tuple[int, float, float]]) -> tuple[list[Table], list[Chart]]:
    """What a tokenizer's instruments say.

    Args:
      moire: of the zone plate. mtfs: of each edge as it is, and decoded. errors: per height of text the number of
      characters, and the errors in the text as it is, and decoded.
    """
    tables, charts = [], []
    limits = [("all", slice(None)), ("up to 1/4", found.frequencies <= 0.25), ("above 1/4", found.frequencies > 0.25)]
    tables.append(Table("tokenizer: gratings", ["cycles per pixel", "gain", "moire, % of the grating's energy"], [
        [name, round(float(found.gain[:, part].mean()), 3), round(100 * float(found.moire[:, part].mean()), 2)]
        for name, part in limits] + [["zone plate", None, round(100 * moire, 2)]],
        "Gain is the amplitude at the grating's own frequency, 1 is perfect; moire is the energy at all others."))
    for field, label in (("gain", "gain"), ("moire", "share of the grating's energy")):
        charts.append(Chart(f"tokenizer: {field} of gratings", "cycles per pixel", label, [
            Line(f"{name} lines", found.frequencies.tolist(), values.tolist())
            for name, values in zip(ANGLES, getattr(found, field), strict=True)]))
    if mtfs:
        tables.append(Table("tokenizer: slanted edges, MTF50 in cycles per pixel", ["edge", "image", "decoded"], [
            [name, *(None if mtf is None or mtf.mtf50 is None else round(mtf.mtf50, 4) for mtf in pair)]
            for name, pair in mtfs.items()],
            "The frequency at which an edge has half its contrast, after ISO 12233. The image's is that of square "
            "pixels, 0.603. A dash: no edge is found, or it stays above one half."))
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
                            "the best correlation with all glyphs. Guesses are wrong in 98.4 %."))
        charts.append(Chart("tokenizer: character error of text", "height of the font, pixels", "share read wrongly", [
            Line("image", list(errors), [before for _, before, _ in errors.values()], dashed=True),
            Line("decoded", list(errors), [after for _, _, after in errors.values()])]))
    return tables, charts
