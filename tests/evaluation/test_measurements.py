"""Every image is measured once and in order, and nothing twice."""

import jax
import numpy as np
import pytest

from refocus_jax.evaluation import measurements
from refocus_jax.evaluation.image_sets import ImageSet
from refocus_jax.runtime import mesh as mesh_lib
from tests.fixtures import extractor as small_extractor


class Count:
    """Measures the first pixel, and remembers how many images it was given at a time."""

    def __init__(self):
        self.sizes = []

    def __call__(self, image_bhwc):
        self.sizes.append(len(image_bhwc))
        return {"first": image_bhwc[:, 0, 0], "sum": image_bhwc.sum(axis=(1, 2, 3), dtype=np.float32)}


@pytest.mark.parametrize(("count", "sizes"), [(12, [4, 4, 4]), (13, [4, 4, 4, 4]), (3, [4])])
def test_all_images_are_measured_in_batches_of_one_size(images, count, sizes):
    measure = Count()
    blocks = list(measurements.of_all(images[:count], measure, 4))
    assert measure.sizes == sizes
    np.testing.assert_array_equal(np.concatenate([b["first"] for b in blocks]), images[:count, 0, 0])


def test_processes_share_the_images(images, monkeypatch):
    """What both processes measure, in the order of their numbers, is every image in its order."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(measurements.processes, "gather", lambda rows: rows)
    parts = []
    for index in range(2):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        measure = Count()
        parts.append([rows["first"] for rows in measurements.of_all(images[:16], measure, 4)])
        assert measure.sizes == [4, 4]
    together = np.concatenate([np.concatenate(pair) for pair in zip(*parts, strict=True)])
    np.testing.assert_array_equal(together, images[:16, 0, 0])


def test_measurements_are_kept_for_what_they_hang_on(images, tmp_path):
    def keep(identity, measure):
        return measurements.keep(tmp_path, "things", identity, images[:10], measure, 4)

    first = Count()
    found = keep({"a": 1}, first)
    assert found["first"].shape == (10, 3) and found["sum"].dtype == np.float32
    again, other = Count(), Count()
    np.testing.assert_array_equal(keep({"a": 1}, again)["sum"], found["sum"])
    keep({"a": 2}, other)
    assert (len(first.sizes), len(again.sizes), len(other.sizes)) == (3, 0, 3)


def test_interrupted_measurements_are_not_taken_for_whole(images, tmp_path):
    class Broken(Count):
        def __call__(self, image_bhwc):
            if self.sizes:
                raise KeyboardInterrupt
            return super().__call__(image_bhwc)

    with pytest.raises(KeyboardInterrupt):
        measurements.keep(tmp_path, "things", {}, images[:10], Broken(), 4)
    found = measurements.keep(tmp_path, "things", {}, images[:10], Count(), 4)
    np.testing.assert_array_equal(found["first"], images[:10, 0, 0])
    assert [path.name.partition("_")[0] for path in tmp_path.iterdir()] == ["things"]


def test_features_of_all_images(images, tmp_path):
    extractor = small_extractor.load("inception", mesh_lib.make_mesh())
    assert measurements.dimensions(extractor) == {"pool": 6, "spatial": 4, "logits": 5}
    found = measurements.of_features(ImageSet(images, "images"), extractor, tmp_path)
    expected = extractor(images)
    for name in ("pool", "spatial", "logits"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-6)
    assert set(measurements.columns(small_extractor.load("efficientnet_lite0", extractor.mesh)(images[:2]))) == {
        "pool", "logits"}
