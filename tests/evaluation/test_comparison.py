"""The metrics that a comparison gives, their names, and the warnings that come with them."""

import numpy as np
import pytest

from refocus_jax.evaluation import comparison, distances
from refocus_jax.evaluation.reference import Reference


def features(seed, count, shift=0.0):
    rng = np.random.default_rng(seed)
    names = {"pool": 12, "spatial": 7, "logits": 5}
    return {name: (rng.normal(size=(count, d)) + shift).astype(np.float32) for name, d in names.items()}


def test_inceptions_numbers_have_the_names_of_the_literature():
    a, b = features(0, 40), features(1, 30, 0.5)
    numbers = comparison.compare(a, Reference.of(b), "fid")
    assert list(numbers) == ["fid", "sfid", "kid", "kid_standard_error", "precision", "recall", "inception_score",
                             "inception_score_standard_deviation"]
    assert numbers["kid"] == distances.kernel_distance(a["pool"], b["pool"])[0]
    assert (numbers["precision"], numbers["recall"]) == distances.precision_recall(a["pool"], b["pool"])
    moments = distances.Moments.of
    assert numbers["fid"] == distances.frechet_distance(moments(a["pool"]), moments(b["pool"]))
    assert numbers["sfid"] == distances.frechet_distance(moments(a["spatial"]), moments(b["spatial"]))


def test_other_features_have_names_of_their_own():
    a, b = features(0, 40), features(1, 30)
    del a["spatial"]
    numbers = comparison.compare(a, Reference.of(b), "fd_efflite0")
    assert {"fd_efflite0", "kid_efflite0", "inception_score_efflite0"} <= set(numbers)
    assert not {"fid", "sfid", "kid", "inception_score"} & set(numbers)


def test_moments_alone_give_what_they_can():
    a, b = features(0, 40), Reference.of(features(1, 30))
    numbers = comparison.compare(a, Reference({"pool": b.moments["pool"]}, None), "fid")
    assert list(numbers) == ["fid", "inception_score", "inception_score_standard_deviation"]
    assert numbers["fid"] == comparison.compare(a, b, "fid")["fid"]


@pytest.mark.parametrize(("samples", "reference", "said"), [
    (5000, 13, []), (4999, 13, ["The Inception Score of 4999 images is too low"]),
    (12, 13, ["12 samples for 12 features: their covariance has at most rank 11", "Inception Score of 12 images"]),
    (5, 10, ["5 samples", "10 reference images for 12 features", "Inception Score of 5 images"])])
def test_too_few_images_are_said_so(samples, reference, said):
    warnings = comparison.warnings(samples, Reference.of(features(0, reference)))
    assert len(warnings) == len(said) and all(a in b for a, b in zip(said, warnings, strict=True))


def test_a_reference_without_images_is_said_so():
    b = Reference.of(features(0, 30))
    assert "no kernel distance, precision and recall" in comparison.warnings(5000, Reference(b.moments, None))[0]
