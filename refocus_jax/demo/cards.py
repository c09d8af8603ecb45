"""Pictures as HTML that needs no other file: each image is part of its `<img>`."""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from refocus_jax.data import pictures

# Colours come from the page's theme, so that text is readable in light and in dark.
STYLE = """
.cards { display: flex; flex-wrap: wrap; gap: 10px; }
.cards figure { margin: 0; flex: 1 1 76px; max-width: 148px; }
.cards.large figure { flex: 0 1 512px; max-width: 512px; }
.cards img { display: block; width: 100%; border-radius: 4px; border: 1px solid var(--border-color-primary); }
.cards .pixels img { image-rendering: pixelated; }
.cards figcaption { color: var(--body-text-color); font-size: 14px; line-height: 1.4; margin-top: 4px; }
.cards pre { color: var(--body-text-color); font-size: 12px; overflow-x: auto; white-space: pre; margin: 0; }
.said h4 { color: var(--body-text-color); margin: 16px 0 4px; }
.said p { color: var(--body-text-color); margin: 4px 0; }
"""


def figure(image_hwc: np.ndarray, caption: str, *, pixels: bool = False, more: str = "") -> str:
    """Returns a uint8 image with its caption.

    Args:
      image_hwc: The image, (h, w, 3).
      caption: Text under it, which is also read to those who do not see it.
      pixels: Whether an enlarged image shows its pixels, instead of being smoothed.
      more: HTML after the caption.
    """
    source = base64.b64encode(pictures.png(image_hwc)).decode()
    return (f'<figure{" class=pixels" if pixels else ""}><img src="data:image/png;base64,{source}" '
            f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption>{more}</figure>')


def row(figures: Sequence[str], large: bool = False) -> str:
    """Returns figures next to each other, as many as fit; `large` ones are up to 512 px wide."""
    return f'<div class="cards{" large" if large else ""}">{"".join(figures)}</div>'


def section(title: str, text: str, content: str) -> str:
    """Returns content under a title and, if it is not empty, a line of text."""
    line = f"<p>{escape(text)}</p>" if text else ""
    return f'<div class="said"><h4>{escape(title)}</h4>{line}{content}</div>'
