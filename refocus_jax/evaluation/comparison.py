"""Comparison of features of samples with those of a reference: all metrics, and warnings about their limits."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from refocus_jax.evaluation import distances
from refocus_jax.evaluation.distances import Moments
from refocus_jax.evaluation.reference import Reference

SPLITS = 10  # number of splits for the Inception Score
NEIGHBOURS = 3  # k of the k-th nearest neighbour for precision and recall
SCORABLE = 5000  # number of images from which on an Inception Score is meaningful


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of the metrics of one network's features; only Inception's have the names of the literature.

    Attributes:
      distance: "fid", or "fd_NETWORK"; the names of the other metrics then end with _NETWORK too.
    """

    distance: str

    @property
    def spatial(self) -> str:
        """Name of the Fréchet distance of spatial features."""
        return f"s{self.distance}"

    def of(self, metric: str) -> str:
        """Return the name of a metric, such as "kid", with the network's suffix."""
        return "_".join([metric, *self.distance.split("_")[1:]])


def compare(columns: Mapping[str, np.ndarray], reference: Reference, distance: str) -> dict[str, float]:
    """Compute all distances of n samples from a reference, and the Inception Score of the samples.

    Args:
      columns: Features (n, d) by name: "pool", "logits", and "spatial" if the network has them.
      reference: The features of the reference.
      distance: Name of the Fréchet distance, see `Names`.

    Returns:
      The metrics by name.
    """
    names = Names(distance)
    numbers = frechet(columns, reference, distance)
    if reference.pool is not None:
        kernel, error = distances.kernel_distance(columns["pool"], reference.pool)
        precision, recall = distances.precision_recall(columns["pool"], reference.pool, NEIGHBOURS)
        numbers |= {names.of("kid"): kernel, f"{names.of('kid')}_standard_error": error,
                    "precision": precision, "recall": recall}
    score, deviation = distances.inception_score(columns["logits"], SPLITS)
    return numbers | {names.of("inception_score"): score,
                      f"{names.of('inception_score')}_standard_deviation": deviation}


def frechet(columns: Mapping[str, np.ndarray], reference: Reference, distance: str) -> dict[str, float]:
    """Compute only the Fréchet distances; `columns` as for `compare`, but logits are not needed."""
    names = {"pool": distance, "spatial": Names(distance).spatial}
    return {names[name]: distances.frechet_distance(Moments.of(columns[name]), moments)
            for name, moments in reference.moments.items() if name in columns}


def warnings(count: int, reference: Reference) -> list[str]:
    """Return sentences about what the metrics of `count` samples and this reference cannot show."""
    said = []
    dimensions = len(reference.moments["pool"].mean)
    small = {"samples": count, "reference images": reference.moments["pool"].count}
    for what, number in small.items():
        if number is not None and number <= dimensions:
            said.append(f"{number} {what} for {dimensions} features: their covariance has at most rank {number - 1}, "
                        "and Fréchet distances are too large. Compare only distances of the same numbers of images.")
    if count < SCORABLE:
        said.append(f"The Inception Score of {count} images is too low: compare only scores of equal numbers of "
                    f"images, {SCORABLE} or more.")
    if reference.pool is None:
        said.append("The reference holds only means and covariances: no kernel distance, precision and recall.")
    return said
