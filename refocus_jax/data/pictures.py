"""Labelled grids of images for people to look at, as uint8 arrays and as files."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # pixels between cells
LABEL_SIZE = 11  # height of the labels' font in pixels
BACKGROUND = 255
_FRAME, _LAST_FRAME = 400, 2000  # milliseconds of a GIF's frames


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert values in [-1, 1] to uint8, rounded and clipped."""
    return np.rint((np.clip(np.asarray(image, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def png(image_hwc: np.ndarray) -> bytes:
    """Return a uint8 image (h, w, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image_hwc).save(file, format="PNG")
    return file.getvalue()


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """Return uint8 frames of one shape as a GIF that repeats forever and rests at the last one."""
    first, *rest = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, format="GIF", save_all=True, append_images=rest, loop=0,
               duration=[_FRAME] * len(rest) + [_LAST_FRAME])
    return file.getvalue()


def enlarge(image_hwc: np.ndarray, side: int, smooth: bool) -> np.ndarray:
    """Enlarge a uint8 image to a side: bicubic if `smooth`, for band-limited views, else with visible pixels."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image_hwc).resize((side, side), method))


def grid(cells: Sequence[Sequence[np.ndarray]], row_labels: Sequence[str] | None = None,
         column_labels: Sequence[str] | None = None) -> np.ndarray:
    """Combine rows of equally large uint8 images to one picture, with a label before each row and above each column."""
    rows, columns = len(cells), max(len(row) for row in cells)
    height, width = cells[0][0].shape[:2]
    font = ImageFont.load_default(LABEL_SIZE)
    left = 2 * GAP + max(int(font.getlength(label)) for label in row_labels) if row_labels else GAP
    top = LABEL_SIZE + 2 * GAP + 2 if column_labels else GAP
    canvas = Image.new("RGB", (left + columns * (width + GAP), top + rows * (height + GAP)), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(cells):
        y = top + i * (height + GAP)
        if row_labels:
            draw.text((GAP, y + height // 2), row_labels[i], fill=0, font=font, anchor="lm")
        for j, cell in enumerate(row):
            canvas.paste(Image.fromarray(cell), (left + j * (width + GAP), y))
    for j, label in enumerate(column_labels or ()):
        draw.text((left + j * (width + GAP) + width // 2, GAP), label, fill=0, font=font, anchor="mt")
    return np.asarray(canvas)


def focus_pyramid(views: Sequence, grid_sizes: Sequence[int], rho: Sequence[float], side: int) -> np.ndarray:
    """Draw the pyramids of a few images: per image a row each of L_k, D_k and A_k (contrast doubled), coarse to fine.

    Pixels are enlarged without smoothing, so that aliasing in D_k is visible.

    Args:
      views: Per scale a View of (n, s, s, 3) arrays in [-1, 1].
      grid_sizes: Grid sizes p_k of the scales.
      rho: Radii of the scales in pixels.
      side: Side of the image in pixels.

    Returns:
      The picture, uint8 (h, w, 3).
    """
    cells, labels = [], []
    for i in range(len(views[0].focused)):
        for name, gain in (("focused", 1), ("downsampled", 1), ("residual", 2)):
            cells.append([enlarge(to_uint8(gain * np.asarray(getattr(view, name)[i])), side, smooth=False)
                          for view in views])
            labels.append({"focused": "L", "downsampled": "D", "residual": "2 A"}[name])
    columns = [f"p={p} r={r:.2g}" for p, r in zip(grid_sizes, rho, strict=True)]
    return grid(cells, labels, columns)


def reconstructions(images: np.ndarray, thumbnails: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Draw rows of images, their enlarged p_K x p_K thumbnails and their decoded tokens: (n, h, w, 3) in [-1, 1]."""
    return grid([list(map(to_uint8, row)) for row in (images, thumbnails, decoded)],
                ["image", "thumbnail", "decoded"])


def sample_grid(images: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Draw one row per class: images (classes, n, h, w, 3) in [-1, 1]."""
    return grid([list(map(to_uint8, row)) for row in images], class_names)


def focus_pull(stages: Sequence[np.ndarray], class_names: Sequence[str], grid_sizes: Sequence[int]
               ) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw the same samples after every scale, with coarse views enlarged smoothly.

    Args:
      stages: Per scale (n, s, s, 3) in [-1, 1], s = stride * p_k.
      class_names: Class names of the n samples.
      grid_sizes: Grid sizes p_k of the scales.

    Returns:
      A strip with one row per sample and one column per scale, and the frames of an animation, one per scale.
    """
    side = stages[-1].shape[1]
    enlarged = [[enlarge(to_uint8(image), side, smooth=True) for image in stage] for stage in stages]
    strip = grid([list(row) for row in zip(*enlarged, strict=True)], class_names, [f"{p}x{p}" for p in grid_sizes])
    columns = int(np.ceil(np.sqrt(len(class_names))))
    frames = [grid([stage[i:i + columns] for i in range(0, len(stage), columns)]) for stage in enlarged]
    return strip, frames
