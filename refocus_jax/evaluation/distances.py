"""How far one set of images is from another, from features of both: Fréchet and kernel distance, precision and recall,
and the Inception Score of one.

All sums are of float64, on the host. Nothing needs more memory than the features and some blocks of pairs.
"""

import dataclasses
from collections.abc import Iterator
from typing import Self

import numpy as np

_ROWS = 2048  # features that are taken at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """What the Fréchet distance knows of features: mean (d,) and covariance (d, d) in float64.

    Attributes:
      count: of the features; None if nobody has said it.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, features_nd: np.ndarray) -> Self:
        """Of n >= 1 features, which may lie on disk: they are read in blocks."""
        blocks = (np.asarray(features_nd[i:i + _ROWS], np.float64) for i in range(0, len(features_nd), _ROWS))
        total = None
        for block in blocks:
            mean = block.mean(0)
            centred = block - mean
            part = cls(mean, centred.T @ centred / max(len(block) - 1, 1), len(block))
            total = total.merge(part) if total else part
        if total is None:
            raise ValueError("moments of no features at all; give at least one")
        return total

    def merge(self, other: Self) -> Self:
        """The moments of both sets together, whose counts must be known (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = ((self.count - 1) * self.covariance + (other.count - 1) * other.covariance
                   + self.count * other.count / count * np.outer(shift, shift))
        return dataclasses.replace(self, mean=self.mean + shift * (other.count / count),
                                   covariance=scatter / (count - 1), count=count)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Wasserstein-2 distance of two Gaussians: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F_a F_a^T and B = F_b F_b^T the trace of the root is the sum of singular values of F_a^T F_b. So no root of
    rounding errors is taken, and covariances may be of any rank, as they are of fewer features than dimensions.
    """
    shift = a.mean - b.mean
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (d, rank) with F F^T the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _blocks(features_nd: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(features_nd), _ROWS):
        rows = slice(start, min(start + _ROWS, len(features_nd)))
        yield rows, np.asarray(features_nd[rows], np.float64)


def kernel_distance(a_nd: np.ndarray, b_md: np.ndarray) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy of all n and m features, and its standard error.

    Kernel (x.y / d + 1)^3 (Binkowski et al. 2018). What is published is mostly a mean over random subsets of 1000; it
    has the same expectation and a larger error. The standard error is the jackknife's, over the features of both sets.
    It can be a little below zero.

    Raises:
      ValueError: fewer than three features in a set.
    """
    n, m = len(a_nd), len(b_md)
    if min(n, m) < 3:
        raise ValueError(f"the kernel distance of {n} and {m} features; give at least 3 of each")
    within_a, within_b = _kernel_sums(a_nd), _kernel_sums(b_md)
    across_a, across_b = _kernel_sums(a_nd, b_md)
    total_a, total_b, across = within_a.sum(), within_b.sum(), across_a.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * across / (n * m)
    # Without one feature each; the part of the other set alone is the same for all and falls out of the variance.
    without_a = (total_a - 2 * within_a) / ((n - 1) * (n - 2)) - 2 * (across - across_a) / ((n - 1) * m)
    without_b = (total_b - 2 * within_b) / ((m - 1) * (m - 2)) - 2 * (across - across_b) / (n * (m - 1))
    return float(value), float(np.sqrt((n - 1) * without_a.var() + (m - 1) * without_b.var()))


def _kernel_sums(a_nd: np.ndarray, b_md: np.ndarray | None = None) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over the other set, for each of a and each of b; without b over the others of a."""
    others = a_nd if b_md is None else b_md
    sums_a, sums_b = np.zeros(len(a_nd)), np.zeros(len(others))
    for rows, a in _blocks(a_nd):
        for columns, b in _blocks(others):
            if b_md is None and columns.start < rows.start:
                continue  # it has been counted from the other side
            kernel = (a @ b.T / a.shape[1] + 1) ** 3
            if b_md is None and columns == rows:
                np.fill_diagonal(kernel, 0.0)
                sums_a[rows] += kernel.sum(1)
            else:
                sums_a[rows] += kernel.sum(1)
                sums_b[columns] += kernel.sum(0)
    return sums_a + sums_b if b_md is None else (sums_a, sums_b)


def precision_recall(samples_nd: np.ndarray, reference_md: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Share of samples in the reference's manifold, and of the reference in the samples' (Kynkäänniemi et al. 2019).

    A manifold is the union of balls around the features of a set, each as wide as the k-th nearest other is far.

    Raises:
      ValueError: a set has no k others.
    """
    if min(len(samples_nd), len(reference_md)) <= k:
        raise ValueError(f"precision and recall with k = {k} of {len(samples_nd)} and {len(reference_md)} features; "
                         f"give at least {k + 1} of each")
    samples_radius, reference_radius = _radii(samples_nd, k), _radii(reference_md, k)
    precise, recalled = np.zeros(len(samples_nd), bool), np.zeros(len(reference_md), bool)
    for rows, a in _blocks(samples_nd):
        for columns, b in _blocks(reference_md):
            squared = _squared_distances(a, b)
            precise[rows] |= (squared <= reference_radius[None, columns]).any(1)
            recalled[columns] |= (squared <= samples_radius[rows, None]).any(0)
    return float(precise.mean()), float(recalled.mean())


def _radii(features_nd: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each feature to the k-th nearest other."""
    radii = []
    for rows, a in _blocks(features_nd):
        nearest = np.full((len(a), 0), np.inf)
        for columns, b in _blocks(features_nd):
            squared = _squared_distances(a, b)
            if columns == rows:
                np.fill_diagonal(squared, np.inf)
            nearest = np.concatenate([nearest, squared], axis=1)
            nearest = np.partition(nearest, k - 1, axis=1)[:, :k] if nearest.shape[1] > k else nearest
        radii.append(nearest.max(1))
    return np.concatenate(radii)


def _squared_distances(a_nd: np.ndarray, b_md: np.ndarray) -> np.ndarray:
    squared = np.square(a_nd).sum(1)[:, None] + np.square(b_md).sum(1)[None] - 2 * a_nd @ b_md.T
    return np.maximum(squared, 0.0)


def inception_score(logits_nc: np.ndarray, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Exp of the mean KL divergence of class probabilities from their mean: its mean over splits and their deviation.

    The images are shuffled before they are split, from an order that depends on their logits alone. So images that come
    class by class, as generators draw them, give the very score of the same images in any other order; split as they
    come, each part would hold few classes, and the score would be too low.

    Args:
      logits_nc: before the softmax. splits: parts as even as can be.

    Raises:
      ValueError: fewer images than splits.
    """
    logits_nc = np.ascontiguousarray(logits_nc)
    canonical = np.argsort(logits_nc.view(f"V{logits_nc.strides[0]}")[:, 0], kind="stable")
    order = canonical[np.random.default_rng(seed).permutation(len(logits_nc))]
    scores = inception_scores_in_order(logits_nc, splits, order)
    return float(scores.mean()), float(scores.std())


def inception_scores_in_order(logits_nc: np.ndarray, splits: int, order: np.ndarray | None = None) -> np.ndarray:
    """The score of each of (splits,) consecutive parts, of the images as they come or in the given order."""
    count = len(logits_nc)
    if not 1 <= splits <= count:
        raise ValueError(f"the Inception Score of {count} images in {splits} splits; give 1 to {count} splits")
    scores = []
    for part in np.array_split(np.arange(count) if order is None else order, splits):
        logits = np.asarray(logits_nc[part], np.float64)
        logits = logits - logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        mean = np.maximum(p.mean(0), np.finfo(np.float64).tiny)
        scores.append(np.exp((p * (log_p - np.log(mean))).sum(1).mean()))
    return np.array(scores)
