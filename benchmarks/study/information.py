"""What do alias tokens tell about the tokens of the next scale, beyond the structure tokens of their own scale?

This is the conditional mutual information I(r_k; a_{k-1} | r_{k-1}) of tokens at the same place, bounded from below by
what two counting models make of it. One predicts r_k from r_{k-1}, the other from r_{k-1} and a_{k-1}. Both count in
one half of the images and predict the other half, and back off to the model with less context where a context is rare.
The difference of their cross-entropies is positive only if alias tokens help to predict images that were not counted.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.study import tables as study_tables
from benchmarks.study.recipes import Study
from benchmarks.study.rows import ROWS
from refocus_jax.data.token_cache import TokenCache
from refocus_jax.evaluation.tables import Table

# How many counts a model with less context is worth. The best value for one half of the images is used in the other.
_WEIGHTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


def tables(study: Study, seeds: Iterable[int], clusters: str) -> Iterator[Table]:
    """Makes a table with a row per tokenizer whose alias tokens a teacher reads, and a column per scale.

    Args:
      study: The study.
      seeds: The seeds; means over those that are trained are shown.
      clusters: What the bootstrap draws, as in `tables.over_clusters`.

    Raises:
      FileNotFoundError: No row with a teacher is trained.
    """
    found: dict[str, dict[int, Path]] = {}
    for name, row in ROWS.items():
        for seed in seeds:
            for cache in sorted(study.workdir(name, seed).glob("tokens_*")):
                if "alias" in TokenCache(cache).description.vocab_sizes:
                    found.setdefault(row.tokenizer, {}).setdefault(seed, cache)
    if not found:
        raise FileNotFoundError(f"--directory {study.directory} has no tokens of a row with a teacher; give it after "
                                "`run`")
    for evidence in ("own", "class"):
        rows = []
        for tokenizer, caches in found.items():
            seen = np.mean([_gains(TokenCache(cache), evidence, clusters) for cache in caches.values()], axis=0)
            rows.append([tokenizer, str(len(caches)),
                         *(f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]" for gain, low, high in seen)])
        columns = [f"scale {k + 2}" for k in range(len(rows[0]) - 2)]
        whose = {"own": "the image's own alias tokens", "class": "alias tokens of another image of the class"}[evidence]
        yield Table(f"What {whose} tell about the next scale", ["tokenizer", "seeds", *columns], rows,
                    "Nats per token, given the structure token of the scale before at the same place: a lower bound. "
                    "With 95 % bootstrap intervals over "
                    f"{'classes' if clusters == 'class' else 'images'}, averaged over seeds.")


def _gains(cache: TokenCache, evidence: str, clusters: str) -> np.ndarray:
    """Returns the gain with its interval for every scale from the second on, (K - 1, 3)."""
    d, tokens = cache.description, cache.sample(len(cache))
    image = np.arange(len(tokens)) % d.images
    alias = tokens.alias if evidence == "own" else tokens.alias[another(tokens.label, image)]
    ends = np.cumsum([0, *(side * side for side in d.grid_sizes)])
    gains = []
    for k in range(1, len(d.grid_sizes)):
        here = covering(d.grid_sizes[k - 1], d.grid_sizes[k])
        before = slice(ends[k - 1], ends[k])
        gain = information(tokens.structure[:, ends[k]:ends[k + 1]], tokens.structure[:, before][:, here],
                           alias[:, before][:, here], image % 2 == 0, d.vocab_sizes)
        counts = np.bincount(image)
        per_image, label = np.bincount(image, gain) / counts, tokens.label[:len(counts)]
        gains.append(study_tables.over_clusters(per_image, label, clusters))
    return np.array(gains)


def another(label_n: np.ndarray, image_n: np.ndarray) -> np.ndarray:
    """Pairs every example with one of another image of its class, unless half of the class is one image."""
    partner = np.empty(len(label_n), int)
    for label in np.unique(label_n):
        group = np.flatnonzero(label_n == label)
        group = group[np.argsort(image_n[group], kind="stable")]
        partner[group] = np.roll(group, len(group) // 2)
    return partner


def covering(coarse: int, fine: int) -> np.ndarray:
    """Returns for every token of a fine map, row by row, the index of the coarse map's token at its place."""
    index = np.arange(fine) * coarse // fine
    return (index[:, None] * coarse + index).reshape(-1)


def information(child_nl: np.ndarray, parent_nl: np.ndarray, alias_nl: np.ndarray, half_n: np.ndarray,
                vocab_sizes: Mapping[str, int]) -> np.ndarray:
    """Measures how much better tokens are predicted with alias tokens than without, in nats.

    Args:
      child_nl: The tokens to predict.
      parent_nl: The structure tokens at their places, one scale before.
      alias_nl: The alias tokens at their places, one scale before.
      half_n: Which examples belong to the first half of the images.
      vocab_sizes: By stream, "structure" and "alias".

    Returns:
      The difference per example, (n,): the mean over its tokens.
    """
    vocab, half_nl = vocab_sizes["structure"], np.broadcast_to(half_n[:, None], child_nl.shape)
    contexts_nl = (np.zeros_like(parent_nl), parent_nl, parent_nl * vocab_sizes["alias"] + alias_nl)
    probability_nl, losses = np.full(child_nl.shape, 1 / vocab), []
    for context_nl in contexts_nl:
        probability_nl = _with_context(child_nl.astype(np.int64), context_nl.astype(np.int64), half_nl, probability_nl,
                                       vocab)
        losses.append(-np.log(probability_nl).mean(axis=1))
    return losses[1] - losses[2]


def _with_context(child_nl: np.ndarray, context_nl: np.ndarray, half_nl: np.ndarray, back_off_nl: np.ndarray,
                  vocab: int) -> np.ndarray:
    """Returns the probability of every token, from counts in the other half and from a model with less context."""
    together = context_nl * vocab + child_nl
    found = np.empty((len(_WEIGHTS), *child_nl.shape))
    for predicted in (half_nl, ~half_nl):
        hits, all_of_context = (_count(values[~predicted], values[predicted]) for values in (together, context_nl))
        for i, weight in enumerate(_WEIGHTS):
            found[i, predicted] = (hits + weight * back_off_nl[predicted]) / (all_of_context + weight)
    chosen = np.empty_like(back_off_nl)
    for predicted in (half_nl, ~half_nl):
        best = np.log(found[:, ~predicted]).mean(axis=1).argmax()
        chosen[predicted] = found[best, predicted]
    return chosen


def _count(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Counts how often each wanted value occurs among the values."""
    known, counts = np.unique(values, return_counts=True)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, counts[at], 0)
