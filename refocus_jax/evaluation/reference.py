"""References that sets of images are compared with: crops of a data source, folders, files of images or moments."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from refocus_jax.data import npz, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.data.records import SourceSettings
from refocus_jax.evaluation import image_sets, measurements
from refocus_jax.evaluation.distances import Moments
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.judges.features import Extractor

# Relative to the largest number in a covariance, or to its largest eigenvalue: the possible effect of rounding a
# covariance of 2048 features to float32, in which some are published.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The origin of references.

    Attributes:
      reference: "validation" or "train", for crops of a data source, or a path: a folder of images, or an `.npz` file
        with images (`arr_0` or `x`), with moments (`mu`, `sigma`, `mu_s`, `sigma_s`), or with both, as ADM publishes
        them.
      count: Maximum number of crops.
      source: A data source, see `sources.load`.
      rule: How the images of the source become crops. For "train", each image gives as many crops as `count` needs.
      source_settings: How the source is read.
    """

    reference: str
    count: int
    source: str
    rule: CropRule
    source_settings: SourceSettings = dataclasses.field(default_factory=SourceSettings)

    def crops(self, split: str) -> ImageSet:
        """Open the crops of one split of the data source.

        Args:
          split: "train" or "validation".

        Returns:
          The crops.

        Raises:
          ValueError: As for `sources.load`, or if there are too few crops.
          FileNotFoundError: As for `sources.load`.
        """
        source = sources.load(self.source, split, self.source_settings)
        rule = self.rule
        if split != "validation":
            rule = dataclasses.replace(rule, crops_per_image=-(-self.count // len(source)))
        return image_sets.of_source(source, f"the {split} split of {self.source}", rule, self.count)

    def open(self, dimensions: Mapping[str, int]) -> "OpenedReference":
        """Find the reference; nothing is measured yet.

        Args:
          dimensions: Number of features of "pool", and of "spatial" if the network has them.

        Returns:
          The reference.

        Raises:
          FileNotFoundError: If the path does not exist.
          ValueError: If the reference has neither images nor moments of as many features.
        """
        if self.reference in sources.SPLITS:
            return OpenedReference(images=self.crops(self.reference), stored={})
        setting, path = "evaluate.reference", Path(self.reference).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{setting} is {self.reference!r}, which is neither a split nor an existing path; "
                                    f"give {', '.join(sources.SPLITS)}, a folder or an .npz file")
        try:
            stored = stored_moments(path) if path.suffix == ".npz" else {}
            with_images = image_sets.has_images(self.reference)
        except ValueError as error:
            raise ValueError(f"{setting} is {path}, which cannot be used: {error}") from error
        fitting = {name: moments for name, moments in stored.items() if len(moments.mean) == dimensions.get(name)}
        if with_images:
            return OpenedReference(images=image_sets.of_path(setting, self.reference, self.rule), stored=fitting)
        if "pool" not in fitting:
            held = f"moments of {len(stored['pool'].mean)} features" if "pool" in stored else "no images and no moments"
            raise ValueError(f"{setting} is {path}, which has {held}, but evaluate.features computes "
                             f"{dimensions['pool']} features; give other evaluate.features, or a reference with images")
        return OpenedReference(images=None, stored=fitting)


@dataclasses.dataclass(frozen=True)
class Reference:
    """The features of a reference, as far as they are known.

    Attributes:
      moments: Moments of the "pool" features, and of the "spatial" ones if there are any.
      pool: Features (m, d), for precision, recall and kernel distance; None if only moments are known.
    """

    moments: Mapping[str, Moments]
    pool: np.ndarray | None

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> Self:
        """Create a reference from features (m, d) by name: "pool", and "spatial" if there are any."""
        return cls({name: Moments.of(columns[name]) for name in ("pool", "spatial") if name in columns},
                   columns["pool"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedReference:
    """A reference before it is measured.

    Attributes:
      images: The images; None if only moments are known.
      stored: Moments that were read from a file, by the name of the features.
    """

    images: ImageSet | None
    stored: Mapping[str, Moments]

    @property
    def says(self) -> str:
        """Description in words."""
        parts = ["means and covariances from a file, of unknown images"] if self.stored else []
        return "; ".join(parts + ([self.images.says] if self.images else []))

    def measure(self, extractor: Extractor, directory: Path) -> Reference:
        """Compute features of the images, or reuse them from a directory; stored moments have priority over them."""
        if self.images is None:
            return Reference(self.stored, None)
        measured = Reference.of(measurements.of_features(self.images, extractor, directory))
        return Reference({**measured.moments, **self.stored}, measured.pool)


def stored_moments(path: Path) -> dict[str, Moments]:
    """Read the moments in an `.npz` file with ADM's layout, which does not hold the number of images.

    Args:
      path: Path of the file.

    Returns:
      The moments "pool" and "spatial", as far as the file holds them.

    Raises:
      ValueError: If they are not means and covariances. The message does not name the file; callers add its name.
    """
    arrays, found = npz.read(path, ("mu", "sigma", "mu_s", "sigma_s")), {}
    for name, mean, covariance in (("pool", "mu", "sigma"), ("spatial", "mu_s", "sigma_s")):
        if mean in arrays and covariance in arrays:
            found[name] = _moments(mean, arrays[mean], covariance, arrays[covariance])
    return found


def _moments(mean_name: str, mean: np.ndarray, covariance_name: str, covariance: np.ndarray) -> Moments:
    numbers = all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (mean, covariance))
    if not numbers or mean.ndim != 1 or covariance.shape != (*mean.shape, *mean.shape):
        raise ValueError(f"{mean_name} is {mean.dtype} {mean.shape} and {covariance_name} is {covariance.dtype} "
                         f"{covariance.shape}; give finite means (d,) and covariances (d, d)")
    covariance = covariance.astype(np.float64)
    _check_covariance(covariance_name, covariance)
    return Moments(mean.astype(np.float64), covariance)


def _check_covariance(name: str, covariance_dd: np.ndarray) -> None:
    """Raise a ValueError unless the matrix can be a covariance; other distances would be meaningless."""
    asymmetry = np.abs(covariance_dd - covariance_dd.T).max()
    values = np.linalg.eigvalsh(covariance_dd)
    if asymmetry > _TOLERANCE * np.abs(covariance_dd).max():
        raise ValueError(f"{name} is not a covariance: it differs from its transpose by up to {asymmetry:.4g}; give a "
                         "symmetric one")
    if values[0] < -_TOLERANCE * max(values[-1], 0.0):
        raise ValueError(f"{name} is not a covariance: its smallest eigenvalue is {values[0]:.4g} (the largest "
                         f"{values[-1]:.4g}); give one without negative eigenvalues")
