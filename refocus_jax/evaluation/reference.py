"""What sets of images are compared with: crops of a data source, a folder, or a file of images or of moments."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np

from refocus_jax.data import npz, sources
from refocus_jax.data.crops import CropRule
from refocus_jax.evaluation import image_sets, measurements
from refocus_jax.evaluation.distances import Moments
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.judges.features import Extractor

# Of the largest number in a covariance, or of its largest eigenvalue: what rounding to float32, in which some are
# published, may do to one of 2048 features.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """Where references come from.

    Attributes:
      reference: "validation" or "train", crops of a data source, or a path: a folder of images, or an `.npz` file with
      images (`arr_0` or `x`), with moments (`mu`, `sigma`, `mu_s`, `sigma_s`), or with both, as ADM publishes them.
      count: crops at most. source: a data source, see `sources.load`. rule: how its images become crops; of "train" as
      many crops of an image are taken as `count` needs. source_settings: how the source is read.
    """

    reference: str
    count: int
    source: str
    rule: CropRule
    source_settings: sources.SourceSettings = sources.SourceSettings()

    def crops(self, split: str) -> ImageSet:
        """Of one split of the data source.

        Raises:
          ValueError, FileNotFoundError: as for `sources.load`.
        """
        source = sources.load(self.source, split, self.source_settings)
        rule = self.rule
        if split != "validation":
            rule = dataclasses.replace(rule, crops_per_image=-(-self.count // len(source)))
        return image_sets.of_source(source, f"the {split} split of {self.source}", rule, self.count)

    def open(self, dimensions: Mapping[str, int]) -> "OpenedReference":
        """Finds the reference; nothing is measured yet.

        Args:
          dimensions: of the features "pool", and of "spatial" if there are any.

        Raises:
          FileNotFoundError: there is no such path. ValueError: it holds nothing that fits.
        """
        if self.reference in sources.SPLITS:
            return OpenedReference(self.crops(self.reference), {})
        setting, path = "evaluate.reference", Path(self.reference).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{setting} is {self.reference!r}, which is no split and no path; give "
                                    f"{', '.join(sources.SPLITS)}, a folder or an .npz file")
        try:
            stored = stored_moments(path) if path.suffix == ".npz" else {}
            with_images = image_sets.has_images(self.reference)
        except ValueError as error:
            raise ValueError(f"{setting} is {path}, which is not taken: {error}") from error
        fitting = {name: moments for name, moments in stored.items() if len(moments.mean) == dimensions.get(name)}
        if with_images:
            return OpenedReference(image_sets.of_path(setting, self.reference, self.rule), fitting)
        if "pool" not in fitting:
            held = f"moments of {len(stored['pool'].mean)} features" if "pool" in stored else "no images and no moments"
            raise ValueError(f"{setting} is {path}, which holds {held}, and evaluate.features give "
                             f"{dimensions['pool']}; give other evaluate.features, or a reference with images")
        return OpenedReference(None, fitting)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is known of the features of a reference.

    Attributes:
      moments: of "pool" features, and of "spatial" ones where there are any. pool: (m, d) features, of which precision,
      recall and kernel distance are made; None if only moments are known.
    """

    moments: Mapping[str, Moments]
    pool: np.ndarray | None

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> Self:
        """Of features (m, d) by name: "pool", and "spatial" if there are any."""
        return cls({name: Moments.of(columns[name]) for name in ("pool", "spatial") if name in columns},
                   columns["pool"])


@dataclasses.dataclass(frozen=True)
class OpenedReference:
    """A reference before it is measured: its images, its moments where somebody else has measured it, or both."""

    images: ImageSet | None
    stored: Mapping[str, Moments]

    @property
    def says(self) -> str:
        parts = ["means and covariances from a file, of unknown images"] if self.stored else []
        return "; ".join(parts + ([self.images.says] if self.images else []))

    def measure(self, extractor: Extractor, directory: Path) -> Reference:
        """Features of the images, kept in a directory; stored moments take the place of those of the images."""
        if self.images is None:
            return Reference(self.stored, None)
        measured = Reference.of(measurements.of_features(self.images, extractor, directory))
        return Reference({**measured.moments, **self.stored}, measured.pool)


def stored_moments(path: Path) -> dict[str, Moments]:
    """Moments "pool" and "spatial" in an `.npz` file of ADM's layout, as far as it holds them: nobody says of how many.

    Raises:
      ValueError: they are no means and covariances. To name the file is left to the caller.
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
    """Raises a ValueError unless it can be one: a distance from anything else is a number without a meaning."""
    asymmetry = np.abs(covariance_dd - covariance_dd.T).max()
    values = np.linalg.eigvalsh(covariance_dd)
    if asymmetry > _TOLERANCE * np.abs(covariance_dd).max():
        raise ValueError(f"{name} is not a covariance: it differs from its transpose by up to {asymmetry:.4g}; give a "
                         "symmetric one")
    if values[0] < -_TOLERANCE * max(values[-1], 0.0):
        raise ValueError(f"{name} is not a covariance: its smallest eigenvalue is {values[0]:.4g} (the largest "
                         f"{values[-1]:.4g}); give one without negative eigenvalues")
