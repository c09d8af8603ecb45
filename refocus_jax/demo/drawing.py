"""What the tab Sample does, from its controls to pictures and files."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from refocus_jax.data import pictures
from refocus_jax.demo import cards
from refocus_jax.pretrained.scales import Stage
from refocus_jax.sampling.decode import SamplingSettings

MAX_IMAGES = 4  # at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What somebody wants to be drawn: one image for each of some classes.

    Attributes:
      labels: The numbers of the classes, 1 to MAX_IMAGES of them.
      seed: As for `Generator.sample`.
      settings: How tokens are drawn.

    Raises:
      ValueError: The number of classes or the seed is out of range.
    """

    labels: tuple[int, ...]
    seed: int
    settings: SamplingSettings

    def __post_init__(self):
        if not 1 <= len(self.labels) <= MAX_IMAGES:
            raise ValueError(f"{len(self.labels)} classes are chosen; choose 1 to {MAX_IMAGES}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"the seed is {self.seed}; give 0 to {2**32 - 1}")


def request(labels: int | Sequence[int] | None, seed: float | None, cfg: float, top_k: float,
            top_p: float) -> Request:
    """Makes a request of the values of controls, of which some may be empty.

    Raises:
      ValueError: A value is empty, not an integer or out of range.
    """
    if seed is None or seed != int(seed):
        raise ValueError(f"the seed is {'empty' if seed is None else seed}; give an integer of 0 or more")
    chosen = [] if labels is None else [labels] if isinstance(labels, int) else labels
    return Request(labels=tuple(map(int, chosen)), seed=int(seed),
                   settings=SamplingSettings(cfg=float(cfg), top_k=int(top_k), top_p=float(top_p)))


def frame(images_bhwc: np.ndarray, side: int) -> np.ndarray:
    """Returns the images of a stage as one uint8 picture, each enlarged to a side."""
    enlarged = [pictures.enlarge(pictures.to_uint8(image), side, smooth=True) for image in images_bhwc]
    columns = int(np.ceil(np.sqrt(len(enlarged))))
    rows = [enlarged[i:i + columns] for i in range(0, len(enlarged), columns)]
    return enlarged[0] if len(enlarged) == 1 else pictures.grid(rows)


def pull(frames: Sequence[np.ndarray], position: float) -> np.ndarray:
    """Returns the picture at a position of the focus pull.

    Args:
      frames: The frames of the K scales, uint8 of one shape.
      position: 1 (the first frame, the most blurred) to K (the last); between two scales, their frames are mixed.

    Returns:
      The picture, uint8.
    """
    position = min(max(position, 1.0), float(len(frames)))
    before = int(position) - 1
    after, share = min(before + 1, len(frames) - 1), position - 1 - before
    mixed = (1 - share) * frames[before].astype(np.float32) + share * frames[after].astype(np.float32)
    return np.rint(mixed).astype(np.uint8)


def code_colours(codebook_vc: np.ndarray) -> np.ndarray:
    """Returns a colour for each code, so that similar codes have similar colours: uint8 (V, 3).

    Red, green and blue are the ranks of the codes along the three principal axes of the codebook.
    """
    centred = codebook_vc - codebook_vc.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    ranks = np.argsort(np.argsort(centred @ axes.T, axis=0), axis=0)
    colours = np.rint(40 + 200 * ranks / max(1, len(ranks) - 1)).astype(np.uint8)
    return np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])), constant_values=128)


def token_cards(stages: Sequence[Stage], names: Sequence[str], colours_v3: np.ndarray) -> str:
    """Returns the token maps of the scales so far as HTML: per image a row, with the numbers of the tokens.

    Args:
      stages: The stages so far.
      names: The class of each image.
      colours_v3: From `code_colours`.
    """
    rows = []
    for i, name in enumerate(names):
        figures = []
        for stage in stages:
            tokens_pp = stage.tokens[i]
            side = len(tokens_pp)
            lines = "\n".join(" ".join(f"{token:{len(str(tokens_pp.max()))}d}" for token in line) for line in tokens_pp)
            figures.append(cards.figure(colours_v3[tokens_pp], f"{side} × {side}", pixels=True,
                                        more=f"<details><summary>numbers</summary><pre>{lines}</pre></details>"))
        rows.append(cards.section(f"Tokens of {name}", "", cards.row(figures)))
    return "".join(rows)


def settings_json(asked: Request, names: Sequence[str], origin: dict[str, Any], **more: Any) -> str:
    """Returns as JSON what was asked for, with the flags that make --mode=sample draw the same.

    Args:
      asked: The request.
      names: The names of all classes.
      origin: Where the generator comes from.
      **more: Further facts.
    """
    chosen, s = tuple(names[label] for label in asked.labels), asked.settings
    flags = {"sample.classes": chosen, "sample.count": len(chosen), "sample.seed": asked.seed, "sampling.cfg": s.cfg,
             "sampling.top_k": s.top_k, "sampling.top_p": s.top_p}
    return json.dumps({"made_with": origin, "classes": chosen, "seed": asked.seed, "sampling": dataclasses.asdict(s),
                       "flags": [f"--config.{name}={value}" for name, value in flags.items()], **more}, indent=2)
