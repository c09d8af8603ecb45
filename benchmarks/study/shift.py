"""Does a shift of the image by one pixel change its tokens? It changes aliases, more than the image itself."""

from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.study.recipes import Study
from benchmarks.study.rows import ROWS
from refocus_jax import pretrained
from refocus_jax.config import build
from refocus_jax.data import sources
from refocus_jax.evaluation.tables import Table

_RESAMPLES = 1000


def tables(study: Study, seeds: Iterable[int], clusters: str) -> Iterator[Table]:
    """Makes a table for every tokenizer of block B that is trained: a row per blur, a column per scale.

    The held-out images must be larger than the crops. Of each, the crop in the middle is encoded, and the crop one
    pixel to the right.

    Args:
      study: The study.
      seeds: The seeds; means over those that are trained are shown.
      clusters: What the bootstrap draws, as in `tables.over_clusters`.

    Raises:
      ValueError: The images are not larger than the crops.
      FileNotFoundError: No tokenizer is trained.
    """
    swaps = [(name, row) for name, row in ROWS.items() if row.block == "B"]
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for name, row in swaps:
        for seed in seeds:
            if (study.tokenizer_workdir(row.tokenizer, seed) / "tokenizer" / "checkpoints").is_dir():
                found.setdefault(row.tokenizer, {}).setdefault(name, []).append(_kappas(study, name, seed, clusters))
    if not found:
        raise FileNotFoundError(f"--directory {study.directory} has no tokenizer of block B; give it after `run`")
    for tokenizer, by_row in found.items():
        rows = [[name, *(f"{k:.2f} [{low:.2f}, {high:.2f}]" for k, low, high in np.mean(seen, axis=0))]
                for name, seen in by_row.items()]
        count = len(next(iter(by_row.values())))
        columns = [f"scale {k + 1}" for k in range(len(rows[0]) - 1)]
        yield Table(f"Tokens that a shift by one pixel leaves alike, behind {tokenizer}", ["row", *columns], rows,
                    f"Cohen's kappa: 1 if all stay, 0 if as many as by chance. Means over {count} "
                    f"seed{'s' * (count > 1)}, with 95 % bootstrap intervals over "
                    f"{'classes' if clusters == 'class' else 'images'}.")


def _kappas(study: Study, name: str, seed: int, clusters: str) -> np.ndarray:
    """Returns kappa with its interval for every scale, (K, 3)."""
    row = ROWS[name]
    c = study.generator(row, seed).load()
    images, shifted, labels = crops(c)
    trained = pretrained.load_tokenizer(study.tokenizer_workdir(row.tokenizer, seed))
    model, params = build.tokenizer(c), {"structure": trained.params["structure"]}
    encode = jax.jit(lambda image: model.encode(params, image)[0])
    before, after = ([np.asarray(tokens).reshape(len(images), -1) for tokens in encode(batch)]
                     for batch in (images, shifted))
    groups = labels if clusters == "class" else np.arange(len(images))
    return np.array([kappa(a, b, groups, c.tokenizer.model.vocab_size)
                     for a, b in zip(before, after, strict=True)])


def crops(c: ConfigDict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns crops of the held-out images in [-1, 1], the same one pixel to the right, and their classes."""
    source, size = sources.load(c.data.source, "validation", build.source_settings(c)), c.image_size
    here, right, labels = [], [], []
    for i in range(len(source)):
        record = source[i]
        height, width = record["image"].shape[:2]
        if height < size or width <= size:
            raise ValueError(f"held-out image {i} of {c.data.source} has {width} x {height} pixels; a shift needs more "
                             f"than image_size, {size} x {size}")
        top, left = (height - size) // 2, (width - size - 1) // 2
        here.append(record["image"][top:top + size, left:left + size])
        right.append(record["image"][top:top + size, left + 1:left + 1 + size])
        labels.append(record["label"])
    return (*(np.stack(part).astype(np.float32) / 127.5 - 1 for part in (here, right)), np.array(labels))


def kappa(a_nl: np.ndarray, b_nl: np.ndarray, groups_n: np.ndarray, vocab_size: int) -> tuple[float, float, float]:
    """Cohen's kappa of two encodings, and the ends of its 95 % bootstrap interval over groups of images."""
    names = np.unique(groups_n)
    parts: Mapping[str, np.ndarray] = {
        "alike": np.array([(a_nl[groups_n == g] == b_nl[groups_n == g]).sum() for g in names]),
        "count": np.array([a_nl[groups_n == g].size for g in names]),
        "a": np.array([np.bincount(a_nl[groups_n == g].ravel(), minlength=vocab_size) for g in names]),
        "b": np.array([np.bincount(b_nl[groups_n == g].ravel(), minlength=vocab_size) for g in names])}

    def of(weights: np.ndarray) -> float:
        count = weights @ parts["count"]
        expected = (weights @ parts["a"]) @ (weights @ parts["b"]) / count**2
        return (weights @ parts["alike"] / count - expected) / (1 - expected) if expected < 1 else 1.0

    drawn = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    low, high = np.percentile([of(weights) for weights in drawn], [2.5, 97.5])
    return of(np.ones(len(names))), float(low), float(high)
