"""References of every kind, including files in ADM's layout."""

import numpy as np
import pytest

from refocus_jax.data.crops import CropRule
from refocus_jax.evaluation import measurements
from refocus_jax.evaluation.reference import ReferenceSettings
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import extractor as small_extractor


@pytest.fixture(scope="module")
def extractor():
    return small_extractor.load("inception", mesh_lib.make_mesh())


@pytest.fixture
def settings(images, tmp_path):
    np.savez(tmp_path / "source.npz", x=images, y=np.arange(64) % 2, val=np.arange(64) % 4 == 0)

    def make(reference, **changes):
        values = dict(count=30, source=f"npz:{tmp_path}/source.npz", rule=CropRule(image_size=8))
        return ReferenceSettings(reference=str(reference), **values | changes)

    return make


def opened(settings, extractor):
    return settings.open(measurements.dimensions(extractor))


def test_splits_are_crops_of_the_source(settings, extractor, images, tmp_path):
    validation = opened(settings("validation"), extractor)
    assert len(validation.images) == 16 and "16 crops of the validation split of npz:" in validation.says
    found = validation.measure(extractor, tmp_path / "kept")
    expected = extractor(images[::4])
    np.testing.assert_allclose(found.moments["pool"].mean, expected.pool.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.moments["spatial"].covariance, np.cov(expected.spatial.T), atol=1e-6)
    assert found.moments["pool"].count == len(found.pool) == 16
    # Of few training images more crops are taken.
    assert len(opened(settings("train"), extractor).images) == 30
    assert len(opened(settings("train", count=60), extractor).images) == 60


def test_adms_file_gives_moments_and_images(settings, extractor, images, tmp_path):
    """The moments come from all of ImageNet, the images are a part of it: precision and recall use the images."""
    rng = np.random.default_rng(0)
    stored = {"mu": rng.normal(size=6), "sigma": np.eye(6), "mu_s": rng.normal(size=4), "sigma_s": np.eye(4)}
    np.savez(tmp_path / "adm.npz", arr_0=images[:20], **stored)
    both = opened(settings(tmp_path / "adm.npz"), extractor)
    assert both.says == ("means and covariances from a file, of unknown images; 20 images of adm.npz, 8 x 8 pixels")
    found = both.measure(extractor, tmp_path / "kept")
    np.testing.assert_array_equal(found.moments["pool"].mean, stored["mu"])
    np.testing.assert_array_equal(found.moments["spatial"].covariance, stored["sigma_s"])
    assert found.moments["pool"].count is None and len(found.pool) == 20
    np.savez(tmp_path / "moments.npz", **stored)
    found = opened(settings(tmp_path / "moments.npz"), extractor).measure(extractor, tmp_path / "kept")
    np.testing.assert_array_equal(found.moments["pool"].mean, stored["mu"])
    assert found.pool is None


def test_moments_of_other_features_are_not_taken(settings, extractor, images, tmp_path):
    """If there are images, they are measured instead; otherwise it is an error."""
    np.savez(tmp_path / "adm.npz", mu=np.zeros(20), sigma=np.eye(20))
    with pytest.raises(ValueError, match="evaluate.reference is .*adm.npz, which has moments of 20 features, but "
                                         "evaluate.features computes 6 features; give other evaluate.features, or"):
        opened(settings(tmp_path / "adm.npz"), extractor)
    np.savez(tmp_path / "adm.npz", arr_0=images, mu=np.zeros(20), sigma=np.eye(20))
    assert opened(settings(tmp_path / "adm.npz"), extractor).says == "64 images of adm.npz, 8 x 8 pixels"


def test_a_covariance_may_be_rounded_and_of_any_rank(settings, extractor, tmp_path):
    """In float32, as some are published, the eigenvalues of 3 features that lie in 6 dimensions are below zero."""
    features = np.random.default_rng(0).normal(3.0, 2.0, (4, 6))
    covariance = np.cov(features.T).astype(np.float32)
    assert np.linalg.eigvalsh(covariance.astype(np.float64))[0] < 0
    np.savez(tmp_path / "a.npz", mu=features.mean(0), sigma=covariance)
    assert opened(settings(tmp_path / "a.npz"), extractor).stored.keys() == {"pool"}


def test_a_reference_that_does_not_serve_is_named(settings, extractor, tmp_path):
    with pytest.raises(FileNotFoundError, match="is .test., which is neither a split nor an existing "
                                                "path; give train, validation, a folder or an .npz file"):
        opened(settings("test"), extractor)
    np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=np.eye(5))
    with pytest.raises(ValueError, match=r"a.npz, which cannot be used: mu is float64 \(6,\) and sigma .*give finite"):
        opened(settings(tmp_path / "a.npz"), extractor)
    np.savez(tmp_path / "a.npz", mu=np.full(6, np.nan), sigma=np.eye(6))
    with pytest.raises(ValueError, match="give finite means"):
        opened(settings(tmp_path / "a.npz"), extractor)
    for sigma, said in ((np.diag([3.0, 2, 1, 1, 1, -0.01]), r"smallest eigenvalue is -0.01 \(the largest 3\); give"),
                        (-np.eye(6), "smallest eigenvalue is -1"),
                        (np.eye(6) + np.eye(6, k=1), "differs from its transpose by up to 1; give a symmetric")):
        np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(6), sigma_s=sigma)
        with pytest.raises(ValueError, match=f"a.npz, which cannot be used: sigma_s is not a covariance: .*{said}"):
            opened(settings(tmp_path / "a.npz"), extractor)
    np.savez(tmp_path / "a.npz", y=np.zeros(6))
    with pytest.raises(ValueError, match="has no images and no moments"):
        opened(settings(tmp_path / "a.npz"), extractor)
    (tmp_path / "b.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="evaluate.reference is .*b.npz, which cannot be used: it cannot be read"):
        opened(settings(tmp_path / "b.npz"), extractor)
