"""All numbers that features of samples and of a reference give, and what must be said beside them."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from refocus_jax.evaluation import distances
from refocus_jax.evaluation.distances import Moments
from refocus_jax.evaluation.reference import Reference

SPLITS = 10  # of the Inception Score
NEIGHBOURS = 3  # of precision and recall
SCORABLE = 5000  # images from which on an Inception Score says something


@dataclasses.dataclass(frozen=True)
class Names:
    """How metrics of one network's features are called: only Inception's have the names of the literature.

    Attributes:
      distance: "fid", or "fd_NETWORK", whose other metrics end with _NETWORK too.
    """

    distance: str

    @property
    def spatial(self) -> str:
        return f"s{self.distance}"

    def of(self, metric: str) -> str:
        return "_".join([metric, *self.distance.split("_")[1:]])


def compare(columns: Mapping[str, np.ndarray], reference: Reference, distance: str) -> dict[str, float]:
    """Distances of n samples, and their Inception Score.

    Args:
      columns: features (n, d) by name: "pool", "logits", and "spatial" if there are any. distance: see `Names`.
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
    """The Fréchet distances alone; `columns` as for `compare`, without need of logits."""
    names = {"pool": distance, "spatial": Names(distance).spatial}
    return {names[name]: distances.frechet_distance(Moments.of(columns[name]), moments)
            for name, moments in reference.moments.items() if name in columns}


def warnings(count: int, reference: Reference) -> list[str]:
    """What n samples and such a reference cannot say, in plain sentences."""
    said = []
    dimensions = len(reference.moments["pool"].mean)
    small = {"samples": count, "reference images": reference.moments["pool"].count}
    for what, number in small.items():
        if number is not None and number <= dimensions:
            said.append(f"{number} {what} for {dimensions} features: their covariance has rank {number - 1} at most, "
                        "and Fréchet distances are too large. Compare only those of the same numbers of images.")
    if count < SCORABLE:
        said.append(f"The Inception Score of {count} images is too low: compare only those of equal numbers of images, "
                    f"{SCORABLE} or more.")
    if reference.pool is None:
        said.append("The reference holds only means and covariances: no kernel distance, precision and recall.")
    return said
