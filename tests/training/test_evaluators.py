"""The samples that evaluators compare; their other results are tested with the runs of modes/test_train.py."""

import numpy as np
import pytest

from refocus_jax.evaluation import comparison, measurements
from refocus_jax.evaluation.reference import Reference
from refocus_jax.runtime import mesh as mesh_lib
from refocus_jax.training.evaluators import SampleDistance
from tests.fixtures import extractor as small_extractor


@pytest.mark.parametrize("count", [10, 12])
def test_samples_of_all_classes_are_compared_each_with_a_number_of_its_own(images, count):
    extractor, seen = small_extractor.load("inception", mesh_lib.make_mesh()), []

    def draw(labels, start):
        seen.extend(zip(labels.tolist(), range(start, start + len(labels)), strict=True))
        return images[start:start + len(labels)] / np.float32(127.5) - 1

    def features(some):
        return measurements.columns(extractor(some))

    reference = Reference.of(features(images[30:]))
    found = SampleDistance(extractor=extractor, reference=reference, count=count, batch_size=4)(draw, num_classes=3)
    assert seen == [(i % 3, i) for i in range(12)]
    expected = comparison.frechet(features(images[:count]), reference, "fid")
    assert set(found) == {"fid", "sfid"} and found == pytest.approx(expected, rel=1e-4)
    assert np.isfinite(list(found.values())).all()
