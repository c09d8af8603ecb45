"""Metrics of sets of images, computed from features.

Fréchet distance, kernel distance, precision and recall compare two sets; the Inception Score needs one. All sums are
computed in float64 on the host. No function needs more memory than the features and a few blocks of pairs.
"""

import dataclasses
from collections.abc import Iterator
from typing import Self, overload

import numpy as np

_ROWS = 2048  # how many features are processed at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features, for the Fréchet distance.

    Attributes:
      mean: Mean (d,), float64.
      covariance: Covariance (d, d), float64.
      count: Number of features; None if it is not known.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, features_nd: np.ndarray) -> Self:
        """Compute the moments of n >= 1 features, which may lie on disk: they are read in blocks."""
        blocks = (np.asarray(features_nd[i:i + _ROWS], np.float64) for i in range(0, len(features_nd), _ROWS))
        total: Self | None = None
        for block in blocks:
            mean = block.mean(0)
            centred = block - mean
            part = cls(mean, centred.T @ centred / max(len(block) - 1, 1), len(block))
            total = total.merge(part) if total else part
        if total is None:
            raise ValueError("there are no features to compute moments of; give at least one")
        return total

    def merge(self, other: Self) -> Self:
        """Compute the moments of the union of two sets with known counts (Chan, Golub, LeVeque 1979)."""
        assert self.count is not None and other.count is not None
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = ((self.count - 1) * self.covariance + (other.count - 1) * other.covariance
                   + self.count * other.count / count * np.outer(shift, shift))
        return dataclasses.replace(self, mean=self.mean + shift * (other.count / count),
                                   covariance=scatter / (count - 1), count=count)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute the squared Wasserstein-2 distance of two Gaussians: |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F_a F_a^T and B = F_b F_b^T, the trace of the root is the sum of the singular values of F_a^T F_b. This
    avoids roots of rounding errors, and covariances may have any rank, as with fewer features than dimensions.
    """
    shift = a.mean - b.mean
    root = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Return F (d, rank) such that F F^T is the covariance."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _blocks(features_nd: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(features_nd), _ROWS):
        rows = slice(start, min(start + _ROWS, len(features_nd)))
        yield rows, np.asarray(features_nd[rows], np.float64)


def kernel_distance(a_nd: np.ndarray, b_md: np.ndarray) -> tuple[float, float]:
    """Compute the kernel distance: the unbiased squared maximum mean discrepancy of all features.

    The kernel is (x.y / d + 1)^3 (Binkowski et al. 2018). Published values are mostly means over random subsets of
    1000, which have the same expectation and a larger error. The distance can be slightly below zero.

    Args:
      a_nd: Features of one set, (n, d).
      b_md: Features of the other set, (m, d).

    Returns:
      The distance, and its standard error from the jackknife over the features of both sets.

    Raises:
      ValueError: If a set has fewer than three features.
    """
    n, m = len(a_nd), len(b_md)
    if min(n, m) < 3:
        raise ValueError(f"there are {n} and {m} features for the kernel distance; give at least 3 of each")
    within_a, within_b = _kernel_sums(a_nd), _kernel_sums(b_md)
    across_a, across_b = _kernel_sums(a_nd, b_md)
    total_a, total_b, across = within_a.sum(), within_b.sum(), across_a.sum()
    value = total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * across / (n * m)
    # Without one feature each. The term of the other set alone is the same for all and cancels in the variance.
    without_a = (total_a - 2 * within_a) / ((n - 1) * (n - 2)) - 2 * (across - across_a) / ((n - 1) * m)
    without_b = (total_b - 2 * within_b) / ((m - 1) * (m - 2)) - 2 * (across - across_b) / (n * (m - 1))
    return float(value), float(np.sqrt((n - 1) * without_a.var() + (m - 1) * without_b.var()))


@overload
def _kernel_sums(a_nd: np.ndarray) -> np.ndarray: ...


@overload
def _kernel_sums(a_nd: np.ndarray, b_md: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def _kernel_sums(a_nd: np.ndarray, b_md: np.ndarray | None = None) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Sum the kernel over the other set, for each element of a and of b; without b, over the other elements of a."""
    others = a_nd if b_md is None else b_md
    sums_a, sums_b = np.zeros(len(a_nd)), np.zeros(len(others))
    for rows, a in _blocks(a_nd):
        for columns, b in _blocks(others):
            if b_md is None and columns.start < rows.start:
                continue  # this block of pairs has already been counted
            kernel = (a @ b.T / a.shape[1] + 1) ** 3
            if b_md is None and columns == rows:
                np.fill_diagonal(kernel, 0.0)
                sums_a[rows] += kernel.sum(1)
            else:
                sums_a[rows] += kernel.sum(1)
                sums_b[columns] += kernel.sum(0)
    return sums_a + sums_b if b_md is None else (sums_a, sums_b)


def precision_recall(samples_nd: np.ndarray, reference_md: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Compute precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of the samples in the manifold of the reference, recall the share of the reference in the
    manifold of the samples. A manifold is the union of balls around the features of a set; the radius of each ball is
    the distance to the k-th nearest other feature.

    Args:
      samples_nd: Features of the samples, (n, d).
      reference_md: Features of the reference, (m, d).
      k: Number of the neighbour that determines the radius.

    Returns:
      Precision and recall.

    Raises:
      ValueError: If a set has k features or fewer.
    """
    if min(len(samples_nd), len(reference_md)) <= k:
        raise ValueError(f"there are {len(samples_nd)} and {len(reference_md)} features for precision and recall with "
                         f"k = {k}; give at least {k + 1} of each")
    samples_radius, reference_radius = _radii(samples_nd, k), _radii(reference_md, k)
    precise, recalled = np.zeros(len(samples_nd), bool), np.zeros(len(reference_md), bool)
    for rows, a in _blocks(samples_nd):
        for columns, b in _blocks(reference_md):
            squared = _squared_distances(a, b)
            precise[rows] |= (squared <= reference_radius[None, columns]).any(1)
            recalled[columns] |= (squared <= samples_radius[rows, None]).any(0)
    return float(precise.mean()), float(recalled.mean())


def _radii(features_nd: np.ndarray, k: int) -> np.ndarray:
    """Return the squared distance of each feature to the k-th nearest other one."""
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
    """Compute the Inception Score: exp of the mean KL divergence of class probabilities from their mean.

    The images are sorted by their logits and shuffled before they are split, so that the score does not depend on their
    order. If images in the order of their classes, as generators draw them, were split as they are, each part would
    have few classes, and the score would be too low.

    Args:
      logits_nc: Logits (n, classes), before the softmax.
      splits: Number of parts, which are as equal as possible.
      seed: Seed of the shuffled order.

    Returns:
      Mean and standard deviation of the scores of the parts.

    Raises:
      ValueError: If there are fewer images than splits.
    """
    logits_nc = np.ascontiguousarray(logits_nc)
    canonical = np.argsort(logits_nc.view(f"V{logits_nc.strides[0]}")[:, 0], kind="stable")
    order = canonical[np.random.default_rng(seed).permutation(len(logits_nc))]
    scores = inception_scores_in_order(logits_nc, splits, order)
    return float(scores.mean()), float(scores.std())


def inception_scores_in_order(logits_nc: np.ndarray, splits: int, order: np.ndarray | None = None) -> np.ndarray:
    """Compute the score of consecutive parts, (splits,), of the images as they are or in the given order."""
    count = len(logits_nc)
    if not 1 <= splits <= count:
        raise ValueError(f"there are {count} images in {splits} splits for the Inception Score; give 1 to {count} "
                         "splits")
    scores = []
    for part in np.array_split(np.arange(count) if order is None else order, splits):
        logits = np.asarray(logits_nc[part], np.float64)
        logits = logits - logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        p = np.exp(log_p)
        mean = np.maximum(p.mean(0), np.finfo(np.float64).tiny)
        scores.append(np.exp((p * (log_p - np.log(mean))).sum(1).mean()))
    return np.array(scores)
